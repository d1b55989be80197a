// Vectors of lanes, one image to a lane: entries, products, dot products, Cholesky.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__AVX512F__)
#define LANE_BYTES 64
#define ROWS 4
#elif defined(__AVX__)
#define LANE_BYTES 32
#define ROWS 2
#else
#define LANE_BYTES 16
#define ROWS 2
#endif
#define COLUMNS 4  // of a block of products: ROWS x COLUMNS sums stay in registers

namespace {

template <class T>
struct Lanes {
    typedef T V __attribute__((vector_size(LANE_BYTES)));
    typedef decltype(V{} < V{}) Mask;
    static constexpr int lanes = LANE_BYTES / sizeof(T);
    static constexpr T tiny = std::numeric_limits<T>::min();

    static V fill(T x) { return V{} + x; }
    static V root(V x) {
        for (int t = 0; t < lanes; t++) x[t] = std::sqrt(x[t]);
        return x;
    }
    static V larger(V a, V b) { return a > b ? a : b; }
    static V smaller(V a, V b) { return a < b ? a : b; }
    static V size(V a) { return a < 0 ? -a : a; }

    // Vectors cut from one allocation.
    struct Arena {
        V *base;
        int64_t used = 0;
        explicit Arena(int64_t count)
            : base(static_cast<V *>(std::aligned_alloc(LANE_BYTES, count * sizeof(V)))) {
            if (!base) throw std::bad_alloc();
            std::fill(base, base + count, V{});
        }
        ~Arena() { std::free(base); }
        V *take(int64_t count) { return base + (used += count) - count; }
    };

    // `some` arrays of `size` numbers into lanes; the other lanes are zero.
    static void load(int some, int64_t size, const T *from, V *into) {
        if (some < lanes) std::fill(into, into + size, V{});
        for (int64_t i = 0; i < size; i++) {
            V one = into[i];
            for (int t = 0; t < some; t++) one[t] = from[t * size + i];
            into[i] = one;
        }
    }

    // ---- products ---------------------------------------------------------------------------------

    // sums[i][j] += sum over k of x[i, k] y[j, k]; entries are `xi`, `xk`, ... vectors apart.
    template <int P, int Q>
    static inline void block(V (&sums)[P][Q], int depth, const V *x, int xi, int xk, const V *y,
                             int yj, int yk) {
        for (int k = 0; k < depth; k++, x += xk, y += yk) {
            V row[P];
            for (int i = 0; i < P; i++) row[i] = x[i * xi];
            for (int j = 0; j < Q; j++) {
                const V column = y[j * yj];
                for (int i = 0; i < P; i++) sums[i][j] += row[i] * column;
            }
        }
    }

    // `= {}` would call memset, which keeps them out of registers.
    template <int P, int Q>
    static inline void clear(V (&sums)[P][Q]) {
        for (int i = 0; i < P; i++)
            for (int j = 0; j < Q; j++) sums[i][j] = V{};
    }

    template <int N>
    using Count = std::integral_constant<int, N>;

    // Calls `work(i, j, P, Q)` on the blocks of P x Q that cover m x n.
    template <int Q, class Work>
    static inline void cover(int m, int n, Work work) {
        int i = 0;
        for (; i + ROWS <= m; i += ROWS) across<ROWS, Q>(i, n, work);
        remaining<ROWS - 1, Q>(i, m, n, work);
    }

    template <int P, int Q, class Work>
    static inline void remaining(int i, int m, int n, Work work) {
        if constexpr (P > 0) {
            if (m - i == P)
                across<P, Q>(i, n, work);
            else
                remaining<P - 1, Q>(i, m, n, work);
        }
    }

    template <int P, int Q, class Work>
    static inline void across(int i, int n, Work work) {
        int j = 0;
        for (; j + Q <= n; j += Q) work(i, j, Count<P>(), Count<Q>());
        for (; j < n; j++) work(i, j, Count<P>(), Count<1>());
    }

    // put(i, j, sum over k of x[i, k] y[j, k]) for all i < m, j < n.
    template <class Put>
    static inline void product(int m, int n, int depth, const V *x, int xi, int xk, const V *y, int yj,
                               int yk, Put put) {
        cover<COLUMNS>(m, n, [&](int i, int j, auto p, auto q) {
            V sums[p()][q()];
            clear(sums);
            block<p(), q()>(sums, depth, x + i * xi, xi, xk, y + j * yj, yj, yk);
            for (int a = 0; a < p(); a++)
                for (int b = 0; b < q(); b++) put(i + a, j + b, sums[a][b]);
        });
    }

    // out (m x m) = the products of x's m rows, `row` vectors apart, entries `entry` apart.
    static void gram(int m, int depth, const V *x, int row, int entry, V *out) {
        for (int i = 0; i < m; i += 4) {
            const int rows = std::min(4, m - i);
            product(rows, std::min(m, i + 4), depth, x + i * row, row, entry, x, row, entry,
                    [&](int a, int b, V sum) { out[(i + a) * m + b] = out[b * m + i + a] = sum; });
        }
    }

    // <x, y> of factors of `rows` rows and k columns; more columns of zeros change no bit.
    static V dot(int rows, int k, const V *x, const V *y) {
        V even = V{}, odd = V{};
        for (int i = 0; i < rows; i++, x += k, y += k) {
            int c = 0;
            for (; c + 2 <= k; c += 2) even += x[c] * y[c], odd += x[c + 1] * y[c + 1];
            if (c < k) even += x[c] * y[c];
        }
        return even + odd;
    }

    struct Slopes {
        V now, before, along;
    };

    // <steep, gradient>, <steep, old>, <gradient, last>, as `dot`.
    static Slopes slopes(int rows, int k, const V *steep, const V *gradient, const V *old,
                         const V *last) {
        Slopes even = {}, odd = {};
        auto add = [&](Slopes &to, int at) {
            to.now += steep[at] * gradient[at];
            to.before += steep[at] * old[at];
            to.along += gradient[at] * last[at];
        };
        for (int i = 0; i < rows; i++) {
            int c = 0;
            for (; c + 2 <= k; c += 2) add(even, i * k + c), add(odd, i * k + c + 1);
            if (c < k) add(even, i * k + c);
        }
        return {even.now + odd.now, even.before + odd.before, even.along + odd.along};
    }

    // ---- Cholesky ---------------------------------------------------------------------------------

    // The lower factor of a (m x m), in its place; the reciprocals of its diagonal on the diagonal.
    // Returns where `a` was positive definite.
    static Mask factor(int m, V *a) {
        Mask sound = fill(0) < fill(1);
        for (int j = 0; j < m; j++) {
            V *aj = a + j * m;
            V pivot = aj[j];
            for (int k = 0; k < j; k++) pivot -= aj[k] * aj[k];
            const Mask good = pivot > 0;
            sound &= good;
            const V inverse = 1 / root(good ? pivot : fill(1));
            aj[j] = inverse;
            for (int i = j + 1; i < m; i++) {
                V *ai = a + i * m;
                V sum = ai[j];
                for (int k = 0; k < j; k++) sum -= ai[k] * aj[k];
                ai[j] = sum * inverse;
            }
        }
        return sound;
    }

    // out = (weight x^T x + 1)^-1 for a factor x of m columns.
    static void inverse(int m, int rows, const V *x, V weight, V *scratch, V *out) {
        gram(m, rows, x, 1, m, scratch);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < m; j++) scratch[i * m + j] *= weight;
        for (int i = 0; i < m; i++) scratch[i * m + i] += 1;
        factor(m, scratch);
        // The inverse of the lower factor, by columns, into the upper triangle of `out`.
        for (int j = 0; j < m; j++) {
            V *column = out + j * m;
            column[j] = scratch[j * m + j];
            for (int i = j + 1; i < m; i++) {
                V sum = V{};
                for (int k = j; k < i; k++) sum -= scratch[i * m + k] * column[k];
                column[i] = sum * scratch[i * m + i];
            }
        }
        for (int i = 0; i < m; i++)
            for (int j = 0; j <= i; j++) {
                V sum = V{};
                for (int k = i; k < m; k++) sum += out[i * m + k] * out[j * m + k];
                scratch[i * m + j] = scratch[j * m + i] = sum;
            }
        std::copy(scratch, scratch + m * m, out);
    }
};

}  // namespace
