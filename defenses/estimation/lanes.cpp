// Matrix completion and symmetric eigenvalues for many small matrices, one image to a SIMD lane.
//
// A vector V holds the same entry of 4 to 16 images, so that every operation, the scalar ones of an
// eigenvalue iteration too, does full vectors of work, whatever the size of the matrices. No lane sees
// another: an image's result is the same to the bit in any company.
//
// The algorithms are those of `factored.py` and `conjugate.py`, which say why they work and which run
// where this file does not: on a GPU, on large matrices, without a compiler. `native.py` builds it.

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
struct Solver {
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

    static V dot(int64_t count, const V *x, const V *y) {
        V sums[4] = {};
        int64_t k = 0;
        for (; k + 4 <= count; k += 4)
            for (int i = 0; i < 4; i++) sums[i] += x[k + i] * y[k + i];
        for (; k < count; k++) sums[0] += x[k] * y[k];
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
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

    // ---- eigenvalues ------------------------------------------------------------------------------

    // Symmetric a (n x n, destroyed) = q^T diag(values) q, values in no order; scratch: 6 n vectors.
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
        Arena arena(2 * n * n + 8 * n);
        V *a = arena.take(n * n), *q = arena.take(n * n), *d = arena.take(n);
        V *scratch = arena.take(6 * n);
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

    // `some` arrays of `size` numbers into lanes; the other lanes are zero.
    static void load(int some, int64_t size, const T *from, V *into) {
        if (some < lanes) std::fill(into, into + size, V{});
        for (int64_t i = 0; i < size; i++) {
            V one = into[i];
            for (int t = 0; t < some; t++) one[t] = from[t * size + i];
            into[i] = one;
        }
    }

    // ---- completion -------------------------------------------------------------------------------

    const int height, width, area, sketched;
    const T *sketch;
    const T gap;
    const int64_t limit;
    Arena arena;
    V *left, *right;            // U (H x k) and V (W x k)
    V *step_left, *step_right;  // the direction (D, E)
    V *old_left, *old_right, *new_left, *new_right;    // gradients
    V *steep_left, *steep_right, *by_left, *by_right;  // preconditioned; preconditioners
    V *observed;  // NaN where unknown: a mask of its own would be one array more to read
    V *residual, *point, *symmetric, *basis, *values, *scratch;
    V *done_left, *done_right;  // factors of the lanes that are done, H vectors a row
    int *indices;
    int k = 0;  // columns of the factors
    V value;    // f

    Solver(int height, int width, const T *sketch, int columns, T gap, int64_t limit)
        : height(height), width(width), area(height * width), sketched(columns), sketch(sketch),
          gap(gap), limit(limit),
          arena(12 * int64_t(height) * height + 9 * int64_t(area) + 8 * height) {
        const int64_t tall = height * height, wide = area;
        left = arena.take(tall), right = arena.take(wide);
        step_left = arena.take(tall), step_right = arena.take(wide);
        old_left = arena.take(tall), old_right = arena.take(wide);
        new_left = arena.take(tall), new_right = arena.take(wide);
        steep_left = arena.take(tall), steep_right = arena.take(wide);
        done_left = arena.take(tall), done_right = arena.take(wide);
        by_left = arena.take(tall), by_right = arena.take(tall);
        observed = arena.take(area), residual = arena.take(area), point = arena.take(area);
        symmetric = arena.take(tall), basis = arena.take(tall);
        values = arena.take(height), scratch = arena.take(6 * height);
        indices = reinterpret_cast<int *>(arena.take(height));
    }

    // Residual and f at the factors.
    void stand() {
        const V *v = right;
        V energy[4] = {};
        product(height, width, k, left, k, 1, v, k, 1, [&](int i, int j, V sum) {
            const V seen = observed[i * width + j];
            const V rest = seen == seen ? seen - sum : V{};
            residual[i * width + j] = rest;
            energy[j & 3] += rest * rest;
        });
        value = (((energy[0] + energy[1]) + (energy[2] + energy[3])) + nuclear2()) * T(0.5);
    }

    V nuclear2() const {
        const V *v = right;
        return dot(height, k, left, left) + dot(width, k, v, v);
    }

    // The proximal step: SVT of `point` by 1 as balanced factors. Returns false without a spectrum.
    bool shrink() {
        gram(height, width, point, width, 1, symmetric);
        if (!spectrum(height, symmetric, basis, values, scratch)) return false;
        order(height, values, indices);
        k = 1;
        for (int t = 0; t < lanes; t++) {
            int needed = 0;
            while (needed < height && values[indices[t * height + height - 1 - needed]][t] > 1) needed++;
            k = std::max(k, needed);
        }
        V *v = right;
        for (int c = 0; c < k; c++) {
            V square;
            for (int t = 0; t < lanes; t++) {
                const int from = indices[t * height + height - 1 - c];
                square[t] = values[from][t];
                for (int i = 0; i < height; i++) left[i * k + c][t] = basis[from * height + i][t];
            }
            const V singular = root(larger(square, V{}));
            const V size = root(larger(singular - 1, V{}));
            for (int i = 0; i < height; i++) left[i * k + c] *= size;
            scratch[c] = 1 / larger(singular, fill(tiny));
        }
        product(width, k, height, point, 1, width, left, 1, k,
                [&](int j, int c, V sum) { v[j * k + c] = sum * scratch[c]; });
        stand();
        return true;
    }

    // Two rounds of alternating least squares from the sketch, as if p * A were observed.
    void begin() {
        k = sketched;
        V *v = right, weight = V{};
        for (int i = 0; i < area; i++) {
            const V seen = observed[i];
            weight += seen == seen ? fill(1) : V{};
            point[i] = seen == seen ? seen : V{};
        }
        weight /= fill(T(area));
        for (int c = 0; c < k; c++)
            for (int j = 0; j < width; j++) v[j * k + c] = fill(sketch[c * width + j]);
        for (int round = 0; round < 2; round++) {
            product(height, k, width, point, width, 1, v, 1, k,
                    [&](int i, int c, V sum) { steep_left[i * k + c] = sum; });
            inverse(k, width, v, weight, symmetric, by_left);
            product(height, k, k, steep_left, k, 1, by_left, k, 1,
                    [&](int i, int c, V sum) { left[i * k + c] = sum; });
            product(width, k, height, point, 1, width, left, 1, k,
                    [&](int j, int c, V sum) { steep_right[j * k + c] = sum; });
            inverse(k, height, left, weight, symmetric, by_right);
            product(width, k, k, steep_right, k, 1, by_right, k, 1,
                    [&](int j, int c, V sum) { v[j * k + c] = sum; });
        }
        const V ratio = larger(dot(height, k, left, left), fill(tiny)) /
                        larger(dot(width, k, v, v), fill(tiny));
        const V balance = root(root(ratio)), back = 1 / balance;
        for (int i = 0; i < k * height; i++) left[i] *= back;
        for (int i = 0; i < k * width; i++) v[i] *= balance;
        stand();
    }

    // One step of conjugate gradients; `before` is the last step's slope and becomes this one's.
    void step(bool fresh, bool renew, V &before) {
        V *u = left, *v = right, *d = step_left, *e = step_right;
        const int tall = k * height, wide = k * width;
        if (fresh) {
            std::fill(d, d + tall, V{}), std::fill(e, e + wide, V{});
            std::fill(old_left, old_left + tall, V{}), std::fill(old_right, old_right + wide, V{});
        }
        if (renew) {
            inverse(k, width, v, fill(1), symmetric, by_left);
            inverse(k, height, u, fill(1), symmetric, by_right);
        }
        product(height, k, width, residual, width, 1, v, 1, k,
                [&](int i, int c, V sum) { new_left[i * k + c] = u[i * k + c] - sum; });
        product(width, k, height, residual, 1, width, u, 1, k,
                [&](int j, int c, V sum) { new_right[j * k + c] = v[j * k + c] - sum; });
        product(height, k, k, new_left, k, 1, by_left, k, 1,
                [&](int i, int c, V sum) { steep_left[i * k + c] = -sum; });
        product(width, k, k, new_right, k, 1, by_right, k, 1,
                [&](int j, int c, V sum) { steep_right[j * k + c] = -sum; });
        const Slopes of_left = slopes(height, k, steep_left, new_left, old_left, d);
        const Slopes of_right = slopes(width, k, steep_right, new_right, old_right, e);
        const V slope = -(of_left.now + of_right.now);
        V weight = larger((slope + of_left.before + of_right.before) / before, V{});
        V descent = weight * (of_left.along + of_right.along) - slope;
        const Mask restart = descent >= 0;
        weight = restart ? V{} : weight;
        descent = restart ? -slope : descent;
        for (int i = 0; i < tall; i++) d[i] = steep_left[i] + weight * d[i];
        for (int i = 0; i < wide; i++) e[i] = steep_right[i] + weight * e[i];
        before = larger(slope, fill(tiny));
        std::swap(old_left, new_left), std::swap(old_right, new_right);

        // The quartic along (D, E).
        V second = V{}, across = V{}, cubic = V{}, quartic = V{};
        cover<2>(height, width, [&](int i, int j, auto p, auto q) {
            V linear[p()][q()], square[p()][q()];
            clear(linear), clear(square);
            for (int c = 0; c < k; c++) {
                const V *uc = u + i * k + c, *dc = d + i * k + c;
                const V *ec = e + j * k + c, *vc = v + j * k + c;
                for (int a = 0; a < p(); a++)
                    for (int b = 0; b < q(); b++) {
                        linear[a][b] += uc[a * k] * ec[b * k];
                        linear[a][b] += dc[a * k] * vc[b * k];
                        square[a][b] += dc[a * k] * ec[b * k];
                    }
            }
            V s2 = V{}, s11 = V{}, s3 = V{}, s4 = V{};
            for (int a = 0; a < p(); a++)
                for (int b = 0; b < q(); b++) {
                    const int at = (i + a) * width + j + b;
                    const auto known = observed[at] == observed[at];
                    const V one = known ? linear[a][b] : V{}, two = known ? square[a][b] : V{};
                    s2 += one * one;
                    s11 += residual[at] * two;
                    s3 += one * two;
                    s4 += two * two;
                }
            second += s2, across += s11, cubic += s3, quartic += s4;
        });
        const V bend = second - 2 * across + dot(height, k, d, d) + dot(width, k, e, e);
        const V length =
            quartic_minimum(descent, bend, 3 * cubic, 2 * quartic);
        for (int i = 0; i < tall; i++) u[i] += length * d[i];
        for (int i = 0; i < wide; i++) v[i] += length * e[i];
        stand();
    }

    // As `factored._quartic_minimum`.
    static V quartic_minimum(V c1, V c2, V c3, V c4) {
        auto change = [&](V t) { return t * (c1 + t * (c2 / 2 + t * (c3 / 3 + t * (c4 / 4)))); };
        const V zero = fill(tiny);
        V t = c2 > 0 ? -c1 / larger(c2, zero) : fill(1);
        t = smaller(larger(t, zero), fill(3));
        for (int round = 0; round < 2; round++) {
            const V bend = c2 + t * (2 * c3 + t * (3 * c4));
            const V newton = t - (c1 + t * (c2 + t * (c3 + t * c4))) / larger(bend, zero);
            t = bend > 0 ? newton : t;
            t = smaller(larger(t, zero), fill(5));
        }
        const V above = size(c2) / 2 + size(c3) / 3 + size(c4) / 4;
        const V cautious = smaller(-c1 / larger(2 * above, zero), fill(1));
        return change(t) < 0 ? t : cautious;
    }

    V against_observed() const {
        V sums[4] = {};
        for (int i = 0; i < area; i++) {
            const V seen = observed[i];
            sums[i % 4] += seen == seen ? seen * residual[i] : V{};
        }
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    // As `certificate.certified`.
    Mask certified() {
        const V energy = dot(area, residual, residual), reach = against_observed();
        const V primal = (energy + nuclear2()) * T(0.5);
        const V square = reach * reach - 2 * energy * (1 - gap) * primal;
        const V scale = 2 * (1 - gap) * primal / (reach + root(larger(square, V{})));
        gram(height, width, residual, width, 1, symmetric);
        for (int i = 0; i < height * height; i++) symmetric[i] = -symmetric[i];
        for (int i = 0; i < height; i++) symmetric[i * height + i] += 1 / (scale * scale);
        const Mask feasible = factor(height, symmetric);
        return (primal <= tiny) | (feasible & (square >= 0) & (reach > 0));
    }

    // As `certificate.relative_gap`.
    V relative_gap() {
        const V energy = dot(area, residual, residual), reach = against_observed();
        const V primal = (energy + nuclear2()) * T(0.5), zero = fill(tiny);
        gram(height, width, residual, width, 1, symmetric);
        V top = V{};
        if (!spectrum(height, symmetric, basis, values, scratch)) return fill(1);
        for (int i = 0; i < height; i++) top = larger(top, values[i]);
        V scale = smaller(1 / larger(root(top), zero), reach / larger(energy, zero));
        scale = larger(scale, V{});
        const V dual = scale * reach - scale * scale * energy * T(0.5);
        const V gap = smaller(larger(1 - dual / larger(primal, zero), V{}), fill(1));
        return primal <= tiny ? V{} : gap;
    }

    // `some` images, at most `lanes`, as `conjugate.descend`. Returns false where no spectrum was found.
    bool solve(int some, const T *images, const T *seen, const T *start, T *found, int64_t *iterations,
               T *gaps, bool *converged) {
        load(some, area, images, observed), load(some, area, seen, point);
        const V unknown = fill(std::numeric_limits<T>::quiet_NaN());
        for (int i = 0; i < area; i++) observed[i] = point[i] > 0 ? observed[i] : unknown;
        if (start) {
            load(some, area, start, point);
            for (int i = 0; i < area; i++) point[i] = observed[i] == observed[i] ? observed[i] : point[i];
            if (!shrink()) return false;
        } else {
            begin();
        }
        const V endless = fill(std::numeric_limits<T>::infinity());
        V slope = endless;
        Mask going = {};
        for (int t = 0; t < some; t++) going[t] = -1;
        int most = 1;  // columns of what is done
        int64_t since = 0, pause = 4;
        for (int64_t steps = 1;; steps++) {
            step(since == 0, since < 5 || since % 3 == 0, slope);
            if (++since == pause) {
                product(height, width, k, left, k, 1, right, k, 1,
                        [&](int i, int j, V sum) {
                            point[i * width + j] = residual[i * width + j] + sum;
                        });
                if (!shrink()) return false;
                slope = endless;
                since = 0, pause = std::max<int64_t>(2 * pause, 16);
            }
            const bool exhausted = steps >= limit;
            if (steps % 2 && !exhausted) continue;
            const Mask due = going & (slope <= 8 * larger(gap * gap * value, fill(tiny)));
            if (!exhausted && !some_of(due)) continue;
            const Mask proved = (exhausted ? going : due) & certified();
            const Mask leaving = exhausted ? going : proved;
            if (!some_of(leaving)) continue;
            keep(leaving, most);
            const V reached = exhausted ? relative_gap() : V{};
            for (int t = 0; t < some; t++)
                if (leaving[t]) {
                    iterations[t] = steps;
                    converged[t] = proved[t];
                    gaps[t] = proved[t] ? gap : reached[t];
                }
            going &= ~leaving;
            if (!some_of(going)) break;
        }
        product(height, width, most, done_left, height, 1, done_right, height, 1,
                [&](int i, int j, V sum) { point[i * width + j] = sum; });
        for (int t = 0; t < some; t++)
            for (int i = 0; i < area; i++) found[t * area + i] = point[i][t];
        return true;
    }

    static bool some_of(Mask marked) {
        for (int t = 0; t < lanes; t++)
            if (marked[t]) return true;
        return false;
    }

    // The factors of the lanes that leave, beside those that left before with `most` columns.
    void keep(Mask leaving, int &most) {
        auto copy = [&](int rows, const V *from, V *to) {
            for (int i = 0; i < rows; i++, from += k, to += height)
                for (int c = 0; c < std::max(k, most); c++)
                    to[c] = leaving ? (c < k ? from[c] : V{}) : (c < most ? to[c] : V{});
        };
        copy(height, left, done_left);
        copy(width, right, done_right);
        most = std::max(k, most);
    }
};

template <class T>
int64_t descend(int64_t count, int height, int width, const T *observed, const T *mask, const T *start,
                const T *sketch, int columns, double gap, int64_t limit, T *value, int64_t *iterations,
                T *gaps, bool *converged) {
    typedef Solver<T> S;
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
        return Solver<T>::eigh(count, n, matrices, values, vectors);                                 \
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
