// Memory from the system in whole pages: zeroed, aligned to at least 64 bytes, in huge pages if it is large.

#ifndef GRUVE_NATIVE_MEMORY_H
#define GRUVE_NATIVE_MEMORY_H

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace gruve {

constexpr size_t HUGE_PAGE = size_t{2} << 20;

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Throws std::bad_alloc. Pages that are never touched cost address space only.
class Pages {
public:
    Pages() = default;
    explicit Pages(size_t bytes) : bytes_(round_up(bytes < 1 ? 1 : bytes, 4096)) {
        if (bytes > SIZE_MAX - 2 * HUGE_PAGE) throw std::bad_alloc();  // rounding up would overflow
        const bool large = is_large(bytes_);
        mapped_ = large ? round_up(bytes_, HUGE_PAGE) + HUGE_PAGE : bytes_;
        map_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map_ == MAP_FAILED) throw std::bad_alloc();
        data_ = large ? round_up(reinterpret_cast<uintptr_t>(map_), HUGE_PAGE) : reinterpret_cast<uintptr_t>(map_);
#ifdef MADV_HUGEPAGE
        if (large) madvise(reinterpret_cast<void*>(data_), round_up(bytes_, HUGE_PAGE), MADV_HUGEPAGE);
#endif
    }
    Pages(Pages&& other) noexcept { swap(other); }
    Pages& operator=(Pages&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Pages() {
        if (mapped_ > 0) munmap(map_, mapped_);
    }

    template <class T>
    T* at(size_t byte_offset) const {
        return reinterpret_cast<T*>(data_ + byte_offset);
    }
    size_t bytes() const { return bytes_; }
    // The memory that a block of `bytes` takes once all of it was touched.
    static size_t resident(size_t bytes) { return round_up(bytes, is_large(bytes) ? HUGE_PAGE : 4096); }

private:
    // A block of several huge pages is aligned to one; a smaller one is not worth a huge page.
    static bool is_large(size_t bytes) { return bytes >= 2 * HUGE_PAGE; }
    void swap(Pages& other) {
        std::swap(map_, other.map_);
        std::swap(mapped_, other.mapped_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    void* map_ = nullptr;
    size_t mapped_ = 0;
    uintptr_t data_ = 0;
    size_t bytes_ = 0;
};

// Cuts one block into aligned pieces. Without pages it only counts the bytes.
class Layout {
public:
    explicit Layout(const Pages* pages) : pages_(pages) {}
    template <class T>
    T* take(size_t count) {
        const size_t at = used_;
        used_ += round_up(count * sizeof(T), 64);
        return pages_ == nullptr ? nullptr : pages_->at<T>(at);
    }
    bool counting() const { return pages_ == nullptr; }
    size_t used() const { return used_; }

private:
    const Pages* pages_;
    size_t used_ = 0;
};

}  // namespace gruve

#endif
