// Threads that share one job at a time: phases one after the other, each cut into tiles that any thread may take.
//
// Nobody waits for a thread, only for tiles: whoever finishes a phase's last tile opens the next phase. A thread that
// has no core takes no tile and holds nobody up, and the caller alone can do the whole job, which is what happens in a
// forked child, where the other threads do not exist. Between jobs the threads sleep.
//
// A thread that loses its core in the middle of a tile does hold the others up. A caller that has waited for a quarter
// of its time sends the others away and works alone for 32 times as long as it waited, so that cores which somebody
// else needs cost it a thirtieth and not everything. Where the cores are free, that never happens.
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
    // Returns when every phase is done. `alone`: not worth waking the others.
    void run(Job& job, bool alone);

private:
    using Clock = std::chrono::steady_clock;

    void help(int32_t worker);
    void work(int32_t worker);
    void open(uint64_t ticket, int32_t tiles);
    Clock::duration wait_for_change(uint64_t ticket);
    bool waits_too_long() const;
    void stop();

    // Phase number above, tiles nobody has taken yet below. A thread that takes a tile by lowering the count knows
    // from the same word which phase it is of; that phase cannot end before the tile has.
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

    // The caller's: since when this job runs, how much of that it has waited, and until when it works alone.
    Clock::time_point began_;
    Clock::duration waited_{};
    Clock::time_point alone_until_;
    std::atomic<bool> dismissed_{true};  // the others may take no more tiles of this job
    // The job runs in a forked child: nobody to wake, and locks that may be held for ever.
    std::atomic<bool> orphaned_{false};

    const int32_t threads_;
    const pid_t process_;
    std::vector<std::thread> helpers_;
};

}  // namespace gruve

#endif
