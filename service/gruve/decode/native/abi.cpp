#include "abi.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bounds.h"
#include "decoder.h"
#include "float_control.h"
#include "model.h"
#include "sampling.h"

struct gruve_model {
    std::shared_ptr<const gruve::Model> model;
};

struct gruve_decoder {
    gruve::Decoder decoder;
    std::atomic<int32_t> callers{0};
    gruve_decoder(std::shared_ptr<const gruve::Model> model, int32_t slots, int32_t threads)
        : decoder(std::move(model), slots, threads) {}
};

namespace gruve {
namespace {

int32_t fail(int32_t status, const char* why, char* error, size_t error_size) {
    if (error != nullptr && error_size > 0) std::snprintf(error, error_size, "%s", why);
    return status;
}

// Runs `body` and turns an exception into a status and a message.
template <class Body>
int32_t guarded(char* error, size_t error_size, Body body) {
    try {
        body();
        return GRUVE_OK;
    } catch (const std::invalid_argument& refused) {
        return fail(GRUVE_INVALID, refused.what(), error, error_size);
    } catch (const Busy& busy) {
        return fail(GRUVE_BUSY, busy.what(), error, error_size);
    } catch (const std::bad_alloc&) {
        return fail(GRUVE_FAILED, "not enough memory", error, error_size);
    } catch (const std::exception& failed) {
        return fail(GRUVE_FAILED, failed.what(), error, error_size);
    }
}

template <class Body>
int32_t guarded_decoder(gruve_decoder* decoder, char* error, size_t error_size, Body body) {
    if (decoder == nullptr)
        return fail(GRUVE_INVALID, "there is no decoder, or it was closed", error, error_size);
    decoder->callers.fetch_add(1, std::memory_order_acquire);
    const int32_t status = guarded(error, error_size, [&] { body(decoder->decoder); });
    decoder->callers.fetch_sub(1, std::memory_order_release);
    return status;
}

#if defined(__x86_64__)
bool has_f16c() {  // no name that all compilers know
    unsigned int a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
bool has_vnni() {  // AVX-512's
    unsigned int a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
}
bool has_avxvnni() {
    unsigned int a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
bool halves_512_bits() {  // Zen 4: AMD's family 25, where it has AVX-512; `__builtin_cpu_is` knows it from GCC 13 on
    unsigned int a, b, c, d;
    return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) == 25;
}
#elif defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // every Mac with an ARM processor has it
#endif
}
#endif

const Kernels* find_kernels(const char* wanted) {
    const std::string_view name = wanted == nullptr ? "" : wanted;
    const bool any = name.empty();
#if defined(__x86_64__)
    if (has_vnni() && (name == zen4_kernels.name || (any && halves_512_bits()))) return &zen4_kernels;
    if (has_vnni() && (name == avx512vnni_kernels.name || any)) return &avx512vnni_kernels;
    if (has_avx512() && (name == avx512_kernels.name || any)) return &avx512_kernels;
    if (has_avxvnni() && (name == avxvnni_kernels.name || any)) return &avxvnni_kernels;
    if (has_avx2() && (name == avx2_kernels.name || any)) return &avx2_kernels;
#elif defined(__aarch64__)
    if (has_dotprod() && (name == dotprod_kernels.name || any)) return &dotprod_kernels;
    if (name == neon_kernels.name || any) return &neon_kernels;
#endif
    return name == portable_kernels.name || any ? &portable_kernels : nullptr;
}

const Kernels& kernels_named(const char* isa) {
    const Kernels* kernels = find_kernels(isa);
    if (kernels == nullptr)
        throw std::invalid_argument("isa '" + std::string(isa) + "' is unknown, or this CPU does not support it");
    return *kernels;
}

}  // namespace
}  // namespace gruve

using namespace gruve;

int32_t gruve_abi_version(void) { return GRUVE_ABI_VERSION; }

void gruve_struct_sizes(size_t* weights, size_t* pointers, size_t* sampling, size_t* row, size_t* call) {
    *weights = sizeof(gruve_weights);
    *pointers = sizeof(gruve_pointers);
    *sampling = sizeof(gruve_sampling);
    *row = sizeof(gruve_row);
    *call = sizeof(gruve_call);
}

const char* gruve_isa(const char* wanted) {
    const Kernels* kernels = find_kernels(wanted);
    return kernels == nullptr ? nullptr : kernels->name;
}

int32_t gruve_multiplies_exactly(const char* isa) {
    const Kernels* kernels = find_kernels(isa);
    return kernels != nullptr && multiplies_exactly(*kernels);
}

int32_t gruve_model_create(
    const gruve_weights* weights, const char* isa, gruve_model** model, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const FloatControl control(Denormals::ieee);
        check_present("weights", weights);
        check_present("model", model);
        auto packed = std::make_shared<Model>();
        pack(*weights, kernels_named(isa), *packed);
        *model = new gruve_model{std::move(packed)};
    });
}

int32_t gruve_memory(
    const gruve_weights* weights, const char* isa, int32_t slots, int32_t threads, size_t* model, size_t* decoder,
    char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        check_present("weights", weights);
        check_present("model", model);
        check_present("decoder", decoder);
        Model sizes;
        *model = Pages::resident(lay_out(*weights, kernels_named(isa), sizes));
        *decoder = Decoder::bytes(sizes, slots, threads);
    });
}

void gruve_model_destroy(gruve_model* model) { delete model; }

size_t gruve_model_bytes(const gruve_model* model) { return model == nullptr ? 0 : model->model->pages.bytes(); }

int32_t gruve_decoder_create(
    const gruve_model* model, int32_t slots, int32_t threads, gruve_decoder** decoder, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        check_present("model", model);
        check_present("decoder", decoder);
        *decoder = new gruve_decoder(model->model, slots, threads);
    });
}

void gruve_decoder_destroy(gruve_decoder* decoder) {
    if (decoder == nullptr) return;
    // In a forked child, a call that was under way in the parent never ends, and no thread is in it.
    while (!decoder->decoder.forked() && decoder->callers.load(std::memory_order_acquire) > 0)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    delete decoder;
}

int32_t gruve_admit(
    gruve_decoder* decoder, int32_t slot, const gruve_row* row, const float* state, char* error, size_t error_size) {
    return guarded_decoder(decoder, error, error_size, [&](Decoder& d) {
        check_present("row", row);
        d.admit(slot, *row, state);
    });
}

int32_t gruve_decode(gruve_decoder* decoder, const gruve_call* call, char* error, size_t error_size) {
    return guarded_decoder(decoder, error, error_size, [&](Decoder& d) {
        check_present("call", call);
        d.decode(*call);
    });
}

int32_t gruve_snapshot(gruve_decoder* decoder, int32_t slot, float* state, char* error, size_t error_size) {
    return guarded_decoder(decoder, error, error_size, [&](Decoder& d) {
        check_present("state", state);
        d.snapshot(slot, state);
    });
}

int32_t gruve_release(gruve_decoder* decoder, int32_t slot, char* error, size_t error_size) {
    return guarded_decoder(decoder, error, error_size, [&](Decoder& d) { d.release(slot); });
}

int32_t gruve_last_logits(gruve_decoder* decoder, int32_t row, float* logits, char* error, size_t error_size) {
    return guarded_decoder(decoder, error, error_size, [&](Decoder& d) {
        check_present("logits", logits);
        d.last_logits(row, logits);
    });
}

int32_t gruve_draw(
    const char* isa, const float* logits, int32_t vocabulary_size, const gruve_sampling* sampling, int64_t position,
    const int32_t* history, int32_t history_size, const int32_t* masked, int32_t masked_size, int32_t* token,
    char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        const FloatControl control(Denormals::ieee);
        check_present("logits", logits);
        check_present("sampling", sampling);
        check_present("token", token);
        check("vocabulary_size", vocabulary_size, 1, GRUVE_MAX_VOCABULARY);
        check("position", position, 0, GRUVE_MAX_POSITION);
        check("the history's size", history_size, 0, GRUVE_HISTORY);
        check_all("history token", history, history_size, 0, vocabulary_size - 1);
        check_all("masked token", masked, masked_size, 0, vocabulary_size - 1);
        const SamplingParameters parameters = checked(*sampling, vocabulary_size);
        std::vector<int32_t> ring(GRUVE_HISTORY);
        for (int32_t age = 0; age < history_size; ++age)
            ring[(position - 1 - age) & (GRUVE_HISTORY - 1)] = history[history_size - 1 - age];
        Scratch scratch(vocabulary_size);
        *token = draw(
            kernels_named(isa), logits, vocabulary_size, parameters, position,
            {ring.data(), position - 1, history_size}, std::vector<int32_t>(masked, masked + masked_size), scratch);
    });
}

void gruve_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t words[4]) {
    const Philox made = philox(key[0], key[1], counter[0], counter[1], counter[2], counter[3]);
    std::memcpy(words, made.word, sizeof made.word);
}

int32_t gruve_activations(
    const char* isa, const float* x, int32_t n, float* sigmoid, float* tanh, char* error, size_t error_size) {
    return guarded(error, error_size, [&] {
        check_present("x", x);
        check_present("sigmoid", sigmoid);
        check_present("tanh", tanh);
        const FloatControl control(Denormals::flush);
        const Kernels& kernels = kernels_named(isa);
        kernels.sigmoid(x, sigmoid, n);
        kernels.tanh(x, tanh, n);
    });
}
