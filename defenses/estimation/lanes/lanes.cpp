// Matrix completion and symmetric eigenvalues for many small matrices, one image to a SIMD lane.
//
// A vector V holds the same entry of 2 to 16 images, so that every operation, the scalar ones of an
// eigenvalue iteration too, does full vectors of work, whatever the size of the matrices. No lane sees
// another: an image's result is the same to the bit in any company.
//
// The algorithms are those of `factored.py` and `conjugate.py`, which say why they work and which run
// where these files do not: on a GPU, on large matrices, without a compiler. `native.py` builds it.

#include "completion.h"

namespace {

template <class T>
int64_t descend(int64_t count, int height, int width, const T *observed, const T *mask, const T *start,
                const T *sketch, int columns, double gap, int64_t limit, T *value, int64_t *iterations,
                T *gaps, bool *converged) {
    typedef Completion<T> S;
    const int64_t area = int64_t(height) * width;
    S solver(height, width, sketch, columns, T(gap), limit);
    int64_t failed = 0;
    for (int64_t first = 0; first < count; first += S::lanes) {
        const int some = int(std::min<int64_t>(S::lanes, count - first));
        failed += !solver.solve(some, observed + first * area, mask + first * area,
                                start ? start + first * area : nullptr, value + first * area,
                                iterations + first, gaps + first, converged + first);
    }
    return failed;
}

}  // namespace

// Each returns how many groups of lanes found no spectrum within 30 n rounds; 0 means all is well.
#define EXPORT(T, NAME)                                                                              \
    extern "C" int64_t eigh_##NAME(int64_t count, int n, const T *matrices, T *values, T *vectors) { \
        return Spectra<T>::eigh(count, n, matrices, values, vectors);                                \
    }                                                                                                \
    extern "C" int64_t descend_##NAME(int64_t count, int height, int width, const T *observed,       \
                                      const T *mask, const T *start, const T *sketch, int columns,   \
                                      double gap, int64_t limit, T *value, int64_t *iterations,      \
                                      T *gaps, bool *converged) {                                    \
        return descend<T>(count, height, width, observed, mask, start, sketch, columns, gap, limit,  \
                          value, iterations, gaps, converged);                                       \
    }
EXPORT(float, float32)
EXPORT(double, float64)
