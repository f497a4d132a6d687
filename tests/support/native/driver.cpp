// What the sanitizers watch: random schedules through the C ABI with several threads, checked against solo runs, then
// everything that must be refused. Prints what failed and returns 1, or prints OK, the digests and the instruction sets.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "abi.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what, const char* error = "") {
    if (holds) return;
    std::printf("FAILED: %s %s\n", what, error);
    ++failures;
}

struct Net {
    gruve_weights weights{};
    gruve_pointers pointers{};
    std::vector<int32_t> kinds, advances;
    std::vector<std::vector<float>> arrays;

    Net(const Net&) = delete;
    Net(int32_t cell, int32_t V, int32_t E, int32_t H, int32_t L, bool half, bool tied, bool int8, bool pointed,
        std::mt19937& random) {
        arrays.reserve(64);
        const int32_t G = cell == GRUVE_LSTM ? 4 : cell == GRUVE_ELMAN ? 1 : 3;
        const auto made = [&](size_t count, float width) {
            std::uniform_int_distribution<int> whole(-64, 64);  // 64ths: fp16 holds them
            arrays.emplace_back();
            for (size_t i = 0; i < count; ++i) arrays.back().push_back(whole(random) / 64.0f * width);
            return arrays.back().data();
        };
        weights.cell = cell;
        weights.vocabulary_size = V;
        weights.embedding_size = E;
        weights.hidden_size = H;
        weights.num_layers = L;
        weights.half = half;
        weights.int8 = int8;
        weights.embedding = made(size_t(V) * E, 2.0f);
        for (int32_t l = 0; l < L; ++l) {
            weights.weight_ih[l] = made(size_t(G) * H * (l == 0 ? E : H), 0.5f);
            weights.weight_hh[l] = made(size_t(G) * H * H, 0.25f);
            weights.bias[l] = made(size_t(G) * H, 0.5f);
            if (cell == GRUVE_GRU_AFTER) weights.bias_hn[l] = made(H, 0.5f);
        }
        if (!tied) weights.head_weight = made(size_t(V) * H, 1.0f);
        if (tied && E != H) weights.head_projection = made(size_t(E) * H, 0.5f);
        weights.head_bias = made(V, 1.0f);
        if (!pointed) return;
        static const int32_t bars[] = {1, 2, 64}, followers[] = {1, 3, 32}, transposed[] = {1, 2};
        static const int32_t scale[] = {9, 0, 8, 7, 12, 11, 10};
        kinds.assign(V, GRUVE_PLAIN_TOKEN);
        kinds[2] = GRUVE_BAR_TOKEN;
        kinds[3] = GRUVE_PART_TOKEN;
        for (int32_t token = 0; token < V; ++token) advances.push_back(token % 4 - 1);
        pointers.bars_size = pointers.followers_size = 3;
        pointers.bars = bars;
        pointers.followers = followers;
        pointers.transposed_size = 2;
        pointers.transposed = transposed;
        pointers.scale_size = 7;
        pointers.scale = scale;
        pointers.kinds = kinds.data();
        pointers.advances = advances.data();
        pointers.start_token = cell % 2 ? -1 : 4;
        pointers.place_step = 2;
        pointers.places = cell == GRUVE_LSTM ? 0 : 7;
        pointers.counts = 64;
        pointers.matches = cell == GRUVE_ELMAN ? 0 : 32;
        const size_t K = 8;
        pointers.weight = made(K * (V + 1) * E, 0.5f);
        if (pointers.matches) pointers.match = made(K * pointers.matches * E, 0.5f);
        if (pointers.places) pointers.place = made(size_t(pointers.places) * E, 0.5f);
        pointers.count = made(size_t(pointers.counts) * E, 0.5f);
        pointers.gate = made(K * H, 1.0f);
        pointers.gate_bias = made(K * (pointers.matches ? pointers.matches : 1), 1.0f);
        weights.pointers = &pointers;
    }
};

struct Sequence {
    std::vector<int32_t> history, prompt, stop_table, stop_ids;
    gruve_row row{};
    int32_t bias_id = 0;
    float bias = 0.5f;

    Sequence(int32_t V, bool pointed, std::mt19937& random) {
        const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
        history = {below(V)};
        if (pointed && below(2)) {  // a window that is full, of few different tokens, somewhere in a long transcript
            for (int i = 1; i < 1024; ++i) history.push_back(below(3) ? below(5) : below(V));
            row.position = 1023 + below(3000);
        }
        for (int32_t i = below(9); i > 0; --i) prompt.push_back(below(V));
        stop_table.assign(size_t{2} * V, 0);
        stop_table[below(V)] = 1;
        stop_table[V + below(V)] = 1 << 30;
        stop_ids = {below(V)};
        bias_id = below(V);
        row.history = history.data();
        row.history_size = static_cast<int32_t>(history.size());
        row.forced = prompt.data();
        row.forced_size = static_cast<int32_t>(prompt.size());
        row.max_tokens = 1 + below(30);
        row.min_tokens = below(3);
        row.end_id = below(3) == 0 ? -1 : 1;
        row.ignore_eos = below(2);
        row.logprobs = below(4) - 1;
        if (below(2)) {
            row.stop_table = stop_table.data();
            row.stop_states = 2;
            row.stop_ids = stop_ids.data();
            row.stop_ids_size = 1;
        }
        gruve_sampling& s = row.sampling;
        s.seed = random();
        s.greedy = below(4) == 0;
        s.scale = 1512775.4f;
        s.top_k = below(3) == 0 ? 1 + below(V) : 0;
        s.top_p_share = below(3) == 0 ? below(1 << 24) + 1 : -1;
        s.min_p_share = below(3) == 0 ? below(1 << 22) : 0;
        s.penalty = below(2) ? 1.25f : 1.0f;
        s.inverse_penalty = 1.0f / s.penalty;
        s.repetition_window = below(1025);
        s.bias_size = 1;
        s.bias_ids = &bias_id;
        s.bias = &bias;
    }
};

struct Outcome {
    std::vector<int32_t> tokens;
    std::vector<float> state;
    int32_t reason = 0;
    bool operator==(const Outcome& other) const {
        return tokens == other.tokens && reason == other.reason && state.size() == other.state.size() &&
               std::memcmp(state.data(), other.state.data(), state.size() * sizeof(float)) == 0;
    }
};

struct Block {
    std::vector<int32_t> slots, limits, tokens, steps_taken, statuses, ids;
    std::vector<float> chosen, top;
    gruve_call call{};
    Block(std::vector<int32_t> rows, int32_t limit, int32_t steps)
        : slots(std::move(rows)), limits(slots.size(), limit), tokens(slots.size() * steps), steps_taken(slots.size()),
          statuses(slots.size()), ids(tokens.size() * 2), chosen(tokens.size()), top(tokens.size() * 2) {
        call = {static_cast<int32_t>(slots.size()), steps, 2, 1, slots.data(), limits.data(), tokens.data(),
                steps_taken.data(), statuses.data(), chosen.data(), ids.data(), top.data()};
    }
};

char error[256];

Outcome alone(const gruve_model* model, const Sequence& sequence, size_t state_floats) {
    gruve_decoder* decoder = nullptr;
    expect(gruve_decoder_create(model, 1, 1, &decoder, error, sizeof error) == GRUVE_OK, "create", error);
    expect(gruve_admit(decoder, 0, &sequence.row, nullptr, error, sizeof error) == GRUVE_OK, "admit", error);
    Outcome outcome;
    while (outcome.reason == 0) {
        Block block({0}, 1, 1);
        expect(gruve_decode(decoder, &block.call, error, sizeof error) == GRUVE_OK, "decode", error);
        outcome.tokens.push_back(block.tokens[0]);
        outcome.reason = block.statuses[0];
    }
    outcome.state.resize(state_floats);
    expect(gruve_snapshot(decoder, 0, outcome.state.data(), error, sizeof error) == GRUVE_OK, "snapshot", error);
    gruve_decoder_destroy(decoder);
    return outcome;
}

// FNV-1a over everything that was made: the same on every CPU.
uint64_t digest;

void digest_of(const Outcome& outcome) {
    const auto add = [](const void* data, size_t size) {
        for (size_t i = 0; i < size; ++i) digest = (digest ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001B3u;
    };
    add(outcome.tokens.data(), outcome.tokens.size() * sizeof(int32_t));
    add(outcome.state.data(), outcome.state.size() * sizeof(float));
}

void schedule(const gruve_model* model, const Net& net, int32_t slots, int32_t threads, std::mt19937& random) {
    const int32_t V = net.weights.vocabulary_size;
    const size_t state_floats =
        size_t(net.weights.cell == GRUVE_LSTM ? 2 : 1) * net.weights.num_layers * net.weights.hidden_size;
    std::vector<Sequence> waiting;
    waiting.reserve(30);
    for (int i = 0; i < 30; ++i) waiting.emplace_back(V, net.weights.pointers != nullptr, random);
    std::vector<int> in_slot(slots, -1);
    std::vector<Outcome> outcomes(waiting.size());
    gruve_decoder* decoder = nullptr;
    expect(gruve_decoder_create(model, slots, threads, &decoder, error, sizeof error) == GRUVE_OK, "create", error);
    for (size_t next = 0, done = 0; done < waiting.size();) {
        std::vector<int32_t> rows;
        for (int32_t slot = 0; slot < slots; ++slot) {
            if (in_slot[slot] < 0 && next < waiting.size() && random() % 2) {
                in_slot[slot] = static_cast<int>(next++);
                const gruve_row& row = waiting[in_slot[slot]].row;
                expect(gruve_admit(decoder, slot, &row, nullptr, error, sizeof error) == GRUVE_OK, "admit", error);
            }
            if (in_slot[slot] >= 0 && random() % 4) rows.push_back(slot);
        }
        if (rows.empty()) continue;
        const int32_t steps = 1 + static_cast<int32_t>(random() % 9);
        Block block(rows, 1 + static_cast<int32_t>(random() % 12), steps);
        expect(gruve_decode(decoder, &block.call, error, sizeof error) == GRUVE_OK, "decode", error);
        for (size_t i = 0; i < rows.size(); ++i) {
            Outcome& outcome = outcomes[in_slot[rows[i]]];
            for (int32_t k = 0; k < block.steps_taken[i]; ++k) outcome.tokens.push_back(block.tokens[k * rows.size() + i]);
            outcome.reason = block.statuses[i];
            if (outcome.reason == 0) continue;
            outcome.state.resize(state_floats);
            gruve_snapshot(decoder, rows[i], outcome.state.data(), error, sizeof error);
            expect(gruve_release(decoder, rows[i], error, sizeof error) == GRUVE_OK, "release", error);
            in_slot[rows[i]] = -1;
            ++done;
        }
    }
    gruve_decoder_destroy(decoder);
    for (size_t i = 0; i < waiting.size(); ++i) {
        expect(outcomes[i] == alone(model, waiting[i], state_floats), "a sequence is as it is alone");
        digest_of(outcomes[i]);
    }
}

void pointer_refusals(const Net& net, const char* isa) {
    const auto refused = [&](const char* what, auto change) {
        gruve_pointers bad = net.pointers;
        gruve_weights weights = net.weights;
        weights.pointers = &bad;
        change(bad);
        gruve_model* model = nullptr;
        expect(gruve_model_create(&weights, isa, &model, error, sizeof error) == GRUVE_INVALID, what);
    };
    static const int32_t far = 65, unknown[64] = {3}, unknown_token[7] = {1 << 20};
    refused("a bar too far back", [](gruve_pointers& p) { p.bars = &far, p.bars_size = 1; });
    refused("no pointer", [](gruve_pointers& p) { p.bars_size = p.followers_size = p.transposed_size = 0; });
    refused("too many pointers", [](gruve_pointers& p) { p.followers_size = 17; });
    refused("a scale of one token", [](gruve_pointers& p) { p.scale_size = 1; });
    refused("a scale of an unknown token", [](gruve_pointers& p) { p.scale = unknown_token; });
    refused("an unknown kind of token", [](gruve_pointers& p) { p.kinds = unknown; });
    refused("no gates", [](gruve_pointers& p) { p.gate = nullptr; });
    refused("counts beyond the bars kept", [](gruve_pointers& p) { p.counts = 65; });
}

void refusals(const gruve_model* model, const Net& net, std::mt19937& random) {
    gruve_decoder* decoder = nullptr;
    expect(gruve_decoder_create(model, 0, 1, &decoder, error, sizeof error) == GRUVE_INVALID, "no slots");
    expect(gruve_decoder_create(nullptr, 1, 1, &decoder, error, sizeof error) == GRUVE_INVALID, "no model");
    expect(gruve_decoder_create(model, 2, 2, &decoder, error, 5) == GRUVE_OK, "create", error);
    const Sequence good(net.weights.vocabulary_size, false, random);
    const auto refused = [&](const char* what, auto change) {
        Sequence bad = good;
        bad.row.sampling.bias_ids = &bad.bias_id;
        change(bad);
        expect(gruve_admit(decoder, 0, &bad.row, nullptr, error, 5) == GRUVE_INVALID && std::strlen(error) == 4, what);
    };
    refused("a token outside", [](Sequence& s) { s.history[0] = 1 << 20, s.row.history = s.history.data(); });
    refused("no history", [](Sequence& s) { s.row.history = nullptr; });
    refused("a negative size", [](Sequence& s) { s.row.forced_size = -1; });
    refused("a bias outside", [](Sequence& s) { s.bias_id = -1; });
    refused("a scale of nothing", [](Sequence& s) { s.row.sampling.greedy = 0, s.row.sampling.scale = 0.0f; });
    refused("a table that leads nowhere", [](Sequence& s) {
        s.stop_table[0] = 7, s.row.stop_table = s.stop_table.data(), s.row.stop_states = 2;
    });
    const auto refused_call = [&](const char* what, auto change) {
        Block block({0}, 1, 1);
        change(block);
        expect(gruve_decode(decoder, &block.call, error, sizeof error) == GRUVE_INVALID, what);
    };
    refused_call("an empty slot", [](Block&) {});
    expect(gruve_admit(decoder, 0, &good.row, nullptr, nullptr, 0) == GRUVE_OK, "admit");
    refused_call("a slot outside", [](Block& b) { b.slots[0] = 2; });
    refused_call("too many rows", [](Block& b) { b.call.rows = 65; });
    refused_call("too many steps", [](Block& b) { b.call.steps = 1 << 30; });
    refused_call("nowhere to put tokens", [](Block& b) { b.call.tokens = nullptr; });
    expect(gruve_decode(nullptr, nullptr, error, sizeof error) == GRUVE_INVALID, "no decoder");
    gruve_decoder_destroy(decoder);
}

void two_callers(const gruve_model* model, const Net& net, std::mt19937& random) {
    gruve_decoder* decoder = nullptr;
    gruve_decoder_create(model, 1, 2, &decoder, error, sizeof error);
    const Sequence sequence(net.weights.vocabulary_size, false, random);
    const auto caller = [&] {
        for (int i = 0; i < 200; ++i) {
            const int32_t status = gruve_admit(decoder, 0, &sequence.row, nullptr, nullptr, 0);
            Block block({0}, 4, 4);
            const int32_t decoded = gruve_decode(decoder, &block.call, nullptr, 0);
            if ((status != GRUVE_OK && status != GRUVE_BUSY) || decoded == GRUVE_FAILED) std::abort();
        }
    };
    std::thread other(caller);
    caller();
    other.join();
    gruve_decoder_destroy(decoder);
}

// The digest of everything that this instruction set makes, in fp32 or in int8, without or with pointers.
uint64_t made_by(const char* isa, bool int8, bool pointed) {
    std::mt19937 random(7);
    digest = 0xCBF29CE484222325u;
    for (int32_t cell = 0; cell < 4; ++cell)
        for (const bool half : {true, false}) {
            const Net net(cell, 37, cell % 2 ? 24 : 9, half ? 24 : 70, 1 + cell % 3, half, cell != 2, int8, pointed, random);
            gruve_model* model = nullptr;
            expect(gruve_model_create(&net.weights, isa, &model, error, sizeof error) == GRUVE_OK, "a model", error);
            schedule(model, net, 20, 4, random);
            refusals(model, net, random);
            if (pointed) pointer_refusals(net, isa);
            two_callers(model, net, random);
            gruve_model_destroy(model);
        }
    return digest;
}

}  // namespace

int main() {
    const auto made_in_every_way = [](const char* isa) {
        return std::vector<uint64_t>{
            made_by(isa, false, false), made_by(isa, true, false), made_by(isa, false, true), made_by(isa, true, true)};
    };
    const std::vector<uint64_t> made = made_in_every_way("portable");
    std::string isas = "portable";
    for (const char* isa : {"avx2", "avxvnni", "avx512", "avx512vnni", "zen4", "neon", "dotprod"})
        if (gruve_isa(isa) != nullptr) {
            expect(gruve_multiplies_exactly(isa), "int8 products are those of plain integers", isa);
            expect(made_in_every_way(isa) == made, "every instruction set makes the same bits", isa);
            isas += std::string(" ") + isa;
        }
    if (failures > 0) return 1;
    std::printf("OK");
    for (const uint64_t value : made) std::printf(" %016llx", static_cast<unsigned long long>(value));
    std::printf("\n%s\n", isas.c_str());
    return 0;
}
