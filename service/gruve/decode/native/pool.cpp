#include "pool.h"

#include <unistd.h>

#include "float_control.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gruve {
namespace {

constexpr int PHASE_SHIFT = 24;
constexpr uint64_t TILES = (uint64_t{1} << PHASE_SHIFT) - 1;
constexpr uint64_t ENDED = uint64_t{1} << 63;
// A tile takes a few microseconds; going to sleep and waking up takes about ten.
constexpr auto SPIN = std::chrono::microseconds(20);
constexpr int ALONE_TIMES_WAITED = 32;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

void run_alone(Job& job) {
    const FloatControl control(Denormals::flush);
    while (const int32_t tiles = job.next_phase())
        for (int32_t tile = 0; tile < tiles; ++tile) job.run(tile, 0);
}

Pool::Pool(int32_t threads) : ticket_(ENDED), threads_(threads), process_(getpid()) {
    try {
        for (int32_t worker = 1; worker < threads; ++worker) helpers_.emplace_back([this, worker] { help(worker); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

bool Pool::forked() const { return getpid() != process_; }

void Pool::stop() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    called_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
}

void Pool::run(Job& job, bool alone) {
    const FloatControl control(Denormals::flush);
    job_ = &job;
    orphaned_ = forked();
    const int32_t tiles = job.next_phase();
    if (tiles == 0) return;
    began_ = Clock::now();
    waited_ = Clock::duration::zero();
    const bool helped = !alone && threads_ > 1 && !orphaned_ && began_ >= alone_until_;
    dismissed_.store(!helped, std::memory_order_relaxed);
    open(ticket_.load(std::memory_order_relaxed), tiles);
    if (!helped) return work(0);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++calls_;
    }
    called_.notify_all();
    work(0);
    if (waits_too_long()) alone_until_ = Clock::now() + ALONE_TIMES_WAITED * waited_;
}

bool Pool::waits_too_long() const { return waited_ > SPIN && 4 * waited_ > Clock::now() - began_; }

void Pool::help(int32_t worker) {
    const FloatControl control(Denormals::flush);
    uint64_t seen = 0;
    for (;;) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            called_.wait(lock, [&] { return stopping_ || calls_ != seen; });
            if (stopping_) return;
            seen = calls_;
        }
        work(worker);
    }
}

// Takes tiles until the job has ended.
void Pool::work(int32_t worker) {
    for (;;) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        if (ticket & ENDED) return;
        if ((ticket & TILES) == 0) {
            const auto waited = wait_for_change(ticket);
            if (worker == 0) {
                waited_ += waited;
                if (waits_too_long()) dismissed_.store(true, std::memory_order_relaxed);
            }
            continue;
        }
        if (worker != 0 && dismissed_.load(std::memory_order_relaxed)) return;
        if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
        job_->run(tiles_ - static_cast<int32_t>(ticket & TILES), worker);
        if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) open(ticket, job_->next_phase());
    }
}

// Opens the phase after that of `ticket` with `tiles` tiles, or ends the job.
void Pool::open(uint64_t ticket, int32_t tiles) {
    tiles_ = tiles;
    unfinished_.store(tiles, std::memory_order_relaxed);
    const uint64_t phase = (((ticket & ~ENDED) >> PHASE_SHIFT) + 1) << PHASE_SHIFT & ~ENDED;
    ticket_.store(tiles == 0 ? phase | ENDED : phase | static_cast<uint64_t>(tiles), std::memory_order_seq_cst);
    if (waiting_.load(std::memory_order_seq_cst) > 0 && !orphaned_) {
        { const std::lock_guard<std::mutex> lock(mutex_); }
        changed_.notify_all();
    }
}

// Returns how long it took.
Pool::Clock::duration Pool::wait_for_change(uint64_t ticket) {
    const auto since = Clock::now();
    do {
        for (int i = 0; i < 32; ++i) {
            if (ticket_.load(std::memory_order_acquire) != ticket) return Clock::now() - since;
            pause();
        }
    } while (Clock::now() - since < SPIN);
    waiting_.fetch_add(1, std::memory_order_seq_cst);
    {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return ticket_.load(std::memory_order_seq_cst) != ticket; });
    }
    waiting_.fetch_sub(1, std::memory_order_seq_cst);
    return Clock::now() - since;
}

}  // namespace gruve
