// Eigenvalues and eigenvectors of small symmetric matrices, one to a lane.
#pragma once

#include "lanes.h"

namespace {

template <class T>
struct Spectra : Lanes<T> {
    using typename Lanes<T>::V;
    using typename Lanes<T>::Mask;
    using typename Lanes<T>::Arena;
    using Lanes<T>::lanes, Lanes<T>::fill, Lanes<T>::larger, Lanes<T>::load, Lanes<T>::root,
        Lanes<T>::size;

    // Symmetric a (n x n, destroyed) = q^T diag(values) q, values in no order; scratch: 4 n vectors.
    // Householder's reduction to tridiagonal form, then implicit QL (Golub and Van Loan, 8.3), each
    // lane with its own shifts and splits. Returns false where a lane did not converge.
    static bool spectrum(int n, V *a, V *q, V *values, V *scratch) {
        V *d = values, *e = scratch, *w = scratch + n, *sines = scratch + 2 * n,
          *cosines = scratch + 3 * n;
        // What is squared below must neither vanish nor overflow.
        V top = V{};
        for (int i = 0; i < n; i++)
            for (int j = 0; j <= i; j++) top = larger(top, size(a[i * n + j]));
        const V unit = top > 0 ? 1 / top : fill(1);
        for (int i = 0; i < n * n; i++) a[i] *= unit;
        const V least = fill(sizeof(T) == 4 ? T(1e-30) : T(1e-200));

        for (int k = 0; k < n - 2; k++) {
            V *v = a + k * n;  // row k: its right part becomes the reflection's vector
            V sum = V{};
            for (int i = k + 1; i < n; i++) sum += v[i] * v[i];
            const Mask any = sum > least;
            sum = any ? sum : V{};
            const V first = v[k + 1], norm = root(sum), end = first < 0 ? norm : -norm;
            const V half = sum - end * first;
            const V scale = any ? 1 / half : V{};
            d[k] = v[k];
            e[k] = end;
            v[k + 1] = first - end;
            for (int i = k + 1; i < n; i++) w[i] = V{};
            for (int j = k + 1; j < n; j++) {
                const V *aj = a + j * n;
                const V vj = v[j];
                V down = V{};
                for (int i = k + 1; i < j; i++) {
                    down += aj[i] * v[i];
                    w[i] += aj[i] * vj;
                }
                w[j] += down + aj[j] * vj;
            }
            V both = V{};
            for (int i = k + 1; i < n; i++) {
                w[i] *= scale;
                both += w[i] * v[i];
            }
            both *= scale * T(0.5);
            for (int i = k + 1; i < n; i++) w[i] -= both * v[i];
            for (int j = k + 1; j < n; j++) {
                V *aj = a + j * n;
                const V vj = v[j], wj = w[j];
                for (int i = k + 1; i <= j; i++) aj[i] -= vj * w[i] + wj * v[i];
            }
            for (int i = k + 2; i < n; i++) a[(k + 1) * n + i] = a[i * n + k + 1];
            v[k] = scale;
        }
        if (n > 1) {
            d[n - 2] = a[(n - 2) * n + n - 2];
            e[n - 2] = a[(n - 1) * n + n - 2];
        }
        d[n - 1] = a[(n - 1) * n + n - 1];
        e[n - 1] = V{};

        for (int i = 0; i < n * n; i++) q[i] = V{};
        for (int i = 0; i < n; i++) q[i * n + i] = fill(1);
        for (int k = n - 3; k >= 0; k--) {
            const V *v = a + k * n;
            for (int row = k + 1; row < n; row++) {
                V *x = q + row * n;
                V sum = V{};
                for (int i = k + 1; i < n; i++) sum += v[i] * x[i];
                sum *= v[k];
                for (int i = k + 1; i < n; i++) x[i] -= sum * v[i];
            }
        }

        const bool done = tridiagonal(n, d, e, q, sines, cosines, least);
        for (int i = 0; i < n; i++) d[i] = top > 0 ? d[i] * top : V{};
        return done;
    }

    // Diagonalises the tridiagonal (d, e); its rotations go over the rows of q.
    static bool tridiagonal(int n, V *d, V *e, V *q, V *sines, V *cosines, V least) {
        const T eps = std::numeric_limits<T>::epsilon() / 2;
        Mask low = {}, high = {};  // each lane's block at work: rows low to high
        V g = V{};
        // The norm is about 1: what is far below its rounding is nothing, beside zeros too.
        auto split = [&](int m, int t) {
            return std::fabs(e[m][t]) <=
                   eps * std::max(std::fabs(d[m][t]) + std::fabs(d[m + 1][t]), T(1e-3));
        };
        for (int round = 0; round < 30 * n; round++) {
            int left = n, top = -1;
            for (int t = 0; t < lanes; t++) {
                int l = low[t];
                for (; l < n - 1 && split(l, t); l++) e[l][t] = 0;
                int m = l;
                while (m < n - 1 && !split(m, t)) m++;
                if (m < n - 1) e[m][t] = 0;
                low[t] = l;
                high[t] = m;
                if (l == n - 1) continue;
                left = std::min(left, l);
                top = std::max(top, m);
                const T ratio = (d[l + 1][t] - d[l][t]) / (2 * e[l][t]);
                const T length = std::sqrt(ratio * ratio + 1);
                g[t] = d[m][t] - d[l][t] + e[l][t] / (ratio + (ratio < 0 ? -length : length));
            }
            if (top < 0) return true;
            V s = fill(1), c = fill(1), p = V{};
            for (int i = top - 1; i >= left; i--) {
                const Mask inside = (low <= i) & (high > i), below = inside & (high > i + 1);
                const V f = s * e[i], b = c * e[i], square = f * f + g * g, r = root(square);
                const Mask turn = inside & (square > least);
                const V inverse = 1 / (turn ? r : fill(1));
                const V sine = turn ? f * inverse : V{}, cosine = turn ? g * inverse : fill(1);
                const V before = d[i + 1] - p, rest = (d[i] - before) * sine + 2 * cosine * b;
                e[i + 1] = below ? r : e[i + 1];
                p = inside ? sine * rest : p;
                d[i + 1] = inside ? before + p : d[i + 1];
                g = inside ? cosine * rest - b : g;
                s = inside ? sine : s;
                c = inside ? cosine : c;
                sines[i] = sine;
                cosines[i] = cosine;
            }
            for (int t = 0; t < lanes; t++) {
                const int l = low[t];
                if (l == n - 1) continue;
                d[l][t] -= p[t];
                e[l][t] = g[t];
                if (high[t] < n - 1) e[high[t]][t] = 0;
            }
            int j = 0;
            for (; j + 8 <= n; j += 8) rotate<8>(n, left, top, q + j, sines, cosines);
            for (; j < n; j++) rotate<1>(n, left, top, q + j, sines, cosines);
        }
        return false;
    }

    // The rotations of one sweep on `Q` columns of q.
    template <int Q>
    static inline void rotate(int n, int left, int top, V *q, const V *sines, const V *cosines) {
        V y[Q];
        for (int j = 0; j < Q; j++) y[j] = q[top * n + j];
        for (int i = top - 1; i >= left; i--) {
            const V s = sines[i], c = cosines[i];
            const V *x = q + i * n;
            V *out = q + (i + 1) * n;
            for (int j = 0; j < Q; j++) {
                const V here = x[j];
                out[j] = s * here + c * y[j];
                y[j] = c * here - s * y[j];
            }
        }
        for (int j = 0; j < Q; j++) q[left * n + j] = y[j];
    }

    // For each lane the indices of its n values in ascending order.
    static void order(int n, const V *values, int *indices) {
        for (int t = 0; t < lanes; t++) {
            int *mine = indices + t * n;
            for (int i = 0; i < n; i++) {
                int j = i;
                for (; j > 0 && values[mine[j - 1]][t] > values[i][t]; j--) mine[j] = mine[j - 1];
                mine[j] = i;
            }
        }
    }

    // (count, n, n) symmetric -> values (count, n) ascending, vectors (count, n, n) as columns.
    static int64_t eigh(int64_t count, int n, const T *matrices, T *values, T *vectors) {
        Arena arena(2 * n * n + 6 * n);
        V *a = arena.take(n * n), *q = arena.take(n * n), *d = arena.take(n);
        V *scratch = arena.take(4 * n);
        int *indices = reinterpret_cast<int *>(arena.take(n));
        int64_t failed = 0;
        for (int64_t first = 0; first < count; first += lanes) {
            const int some = int(std::min<int64_t>(lanes, count - first));
            load(some, n * n, matrices + first * n * n, a);
            failed += !spectrum(n, a, q, d, scratch);
            order(n, d, indices);
            for (int t = 0; t < some; t++) {
                const int *mine = indices + t * n;
                T *vector = vectors + (first + t) * n * n;
                for (int j = 0; j < n; j++) values[(first + t) * n + j] = d[mine[j]][t];
                for (int i = 0; i < n; i++)
                    for (int j = 0; j < n; j++) vector[i * n + j] = q[mine[j] * n + i][t];
            }
        }
        return failed;
    }
};

}  // namespace
