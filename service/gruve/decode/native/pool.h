// Threads that share one job at a time: phases one after the other, each cut into tiles that any thread may take.
//
// A thread waits for tiles, never for another thread: the thread that finishes a phase's last tile opens the next phase.
// A thread without a core takes no tile and delays nothing. The caller can do the whole job by itself; it does so in a
// forked child, where the other threads do not exist. Between jobs the threads sleep.
//
// A thread that loses its core in the middle of a tile does delay the others. If a caller has waited for a quarter of
// its job's time, it dismisses the other threads and works by itself for 32 times as long as it waited. Cores that other
// processes need then cost it about 3%. This does not happen while the cores are free.
// Knows nothing of what a tile does.

#ifndef GRUVE_NATIVE_POOL_H
#define GRUVE_NATIVE_POOL_H

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace gruve {

class Job {
public:
    virtual ~Job() = default;
    // Prepares the next phase; its number of tiles, 0 when there is none. Called by one thread, between phases.
    virtual int32_t next_phase() = 0;
    // Does one tile; `worker` tells threads apart, 0 to threads - 1.
    virtual void run(int32_t tile, int32_t worker) = 0;
};

// Does a job on this thread.
void run_alone(Job& job);

class Pool {
public:
    // Throws std::system_error where a thread cannot be started.
    explicit Pool(int32_t threads);
    // Must not run in a forked child, which has the locks and not the threads: see `forked`.
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int32_t threads() const { return threads_; }
    // Whether this is a child of the process that made the pool. A job runs there all the same; the pool itself can
    // only be left behind.
    bool forked() const;
    // Returns when every phase is done. `alone` says that the job is too small to wake the other threads.
    void run(Job& job, bool alone);

private:
    using Clock = std::chrono::steady_clock;

    void help(int32_t worker);
    void work(int32_t worker);
    void open(uint64_t ticket, int32_t tiles);
    Clock::duration wait_for_change(uint64_t ticket);
    bool waits_too_long() const;
    void stop();

    // The phase's number in the high bits, its tiles that are not taken yet in the low ones. A thread takes a tile by
    // lowering the count, and the same word tells it the tile's phase, which cannot end before the tile is done.
    std::atomic<uint64_t> ticket_;
    std::atomic<int32_t> unfinished_{0};
    int32_t tiles_ = 0;  // of the open phase; written while nobody holds a tile
    Job* job_ = nullptr;

    std::mutex mutex_;
    std::condition_variable changed_;  // a phase opened or the job ended
    std::atomic<int32_t> waiting_{0};  // threads asleep on `changed_`, or about to be
    std::condition_variable called_;   // a job began
    uint64_t calls_ = 0;
    bool stopping_ = false;

    // Used by the caller only: when this job began, how long it has waited in it, and until when it works by itself.
    Clock::time_point began_;
    Clock::duration waited_{};
    Clock::time_point alone_until_;
    std::atomic<bool> dismissed_{true};  // the others may take no more tiles of this job
    // The job runs in a forked child: there are no threads to wake, and the locks may be held for ever.
    std::atomic<bool> orphaned_{false};

    const int32_t threads_;
    const pid_t process_;
    std::vector<std::thread> helpers_;
};

}  // namespace gruve

#endif
