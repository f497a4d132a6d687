// A thread pool that runs one job at a time. A job is a sequence of phases; each phase is cut into tiles, and any
// thread may take a tile.
//
// Threads wait for tiles, never for a particular thread: the thread that finishes a phase's last tile opens the next
// phase. A thread that has no core takes no tile and delays nobody. The caller can do the whole job by itself. It does
// so in a forked child, where the other threads do not exist. Between jobs the threads sleep.
//
// A thread that loses its core in the middle of a tile does delay the others. If the caller has waited for a quarter of
// its job's time, it dismisses the other threads and works by itself for 32 times as long as it waited. Sharing cores
// with other processes then costs it about 3%. This does not happen while the cores are free.

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
    // Prepares the next phase and returns its number of tiles, 0 at the end. Called by one thread, between phases.
    virtual int32_t next_phase() = 0;
    // Does one tile. `worker` is the thread's number, 0 to threads - 1.
    virtual void run(int32_t tile, int32_t worker) = 0;
};

// Does a whole job on this thread.
void run_alone(Job& job);

class Pool {
public:
    // Throws std::system_error if a thread cannot be started.
    explicit Pool(int32_t threads);
    // Must not run in a forked child, which has the locks but not the threads: see `forked`.
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int32_t threads() const { return threads_; }
    // Whether this process is a forked child of the process that made the pool. Jobs still run there, but the pool must
    // not be destroyed.
    bool forked() const;
    // Runs a job and returns when every phase is done. `alone`: the job is too small to wake the other threads.
    void run(Job& job, bool alone);

private:
    using Clock = std::chrono::steady_clock;

    void help(int32_t worker);
    void work(int32_t worker);
    void open(uint64_t ticket, int32_t tiles);
    Clock::duration wait_for_change(uint64_t ticket);
    bool waits_too_long() const;
    void stop();

    // The phase's number in the high bits, and the number of its tiles that are not taken yet in the low bits. A thread
    // takes a tile by lowering the count. The same word has the tile's phase, which cannot end before the tile is done.
    std::atomic<uint64_t> ticket_;
    std::atomic<int32_t> unfinished_{0};
    int32_t tiles_ = 0;  // the tiles of the open phase; written while no thread has a tile
    Job* job_ = nullptr;

    std::mutex mutex_;
    std::condition_variable changed_;  // a phase opened or the job ended
    std::atomic<int32_t> waiting_{0};  // threads asleep on `changed_`, or about to be
    std::condition_variable called_;   // a job began
    uint64_t calls_ = 0;
    bool stopping_ = false;

    // For the caller only: when this job began, how long it has waited in this job, and until when it works by itself.
    Clock::time_point began_;
    Clock::duration waited_{};
    Clock::time_point alone_until_;
    std::atomic<bool> dismissed_{true};  // whether the other threads may take no more tiles of this job
    // Whether the job runs in a forked child, where there are no threads to wake and the locks may be held forever.
    std::atomic<bool> orphaned_{false};

    const int32_t threads_;
    const pid_t process_;
    std::vector<std::thread> helpers_;
};

}  // namespace gruve

#endif
