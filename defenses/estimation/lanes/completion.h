// min over X of ||X||_* + 1/2 ||M (X - A)||^2, one problem to a lane: `conjugate.py` in lanes.
#pragma once

#include "spectra.h"

namespace {

template <class T>
struct Completion : Spectra<T> {
    using typename Lanes<T>::V;
    using typename Lanes<T>::Mask;
    using typename Lanes<T>::Arena;
    using typename Lanes<T>::Slopes;
    using Lanes<T>::clear, Lanes<T>::dot, Lanes<T>::factor, Lanes<T>::fill, Lanes<T>::gram,
        Lanes<T>::inverse, Lanes<T>::lanes, Lanes<T>::larger, Lanes<T>::load, Lanes<T>::product,
        Lanes<T>::root, Lanes<T>::size, Lanes<T>::slopes, Lanes<T>::smaller, Lanes<T>::tiny;
    using Spectra<T>::order, Spectra<T>::spectrum;

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
    int k = 0;        // columns of the factors
    V energy, value;  // ||R||^2 and f, of the last `stand`

    Completion(int height, int width, const T *sketch, int columns, T gap, int64_t limit)
        : height(height), width(width), area(height * width), sketched(columns), sketch(sketch),
          gap(gap), limit(limit),
          arena(10 * int64_t(height) * height + 9 * int64_t(area) + 6 * height) {
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
        values = arena.take(height), scratch = arena.take(4 * height);
        indices = reinterpret_cast<int *>(arena.take(height));
    }

    // Residual and f at the factors.
    void stand() {
        V sums[4] = {};
        product(height, width, k, left, k, 1, right, k, 1, [&](int i, int j, V sum) {
            const V seen = observed[i * width + j];
            const V rest = seen == seen ? seen - sum : V{};
            residual[i * width + j] = rest;
            sums[j % 4] += rest * rest;
        });
        energy = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        value = (energy + dot(height, k, left, left) + dot(width, k, right, right)) * T(0.5);
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
        Lanes<T>::template cover<2>(height, width, [&](int i, int j, auto p, auto q) {
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

    // <R, A>.
    V reach() const {
        V sums[4] = {};
        for (int i = 0; i < area; i++) {
            const V seen = observed[i];
            sums[i % 4] += seen == seen ? seen * residual[i] : V{};
        }
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    // As `certificate.certified`; f is the primal value, as ||U||^2 + ||V||^2 is at least twice ||X||_*.
    Mask certified() {
        const V along = reach();
        const V square = along * along - 2 * energy * (1 - gap) * value;
        const V scale = 2 * (1 - gap) * value / (along + root(larger(square, V{})));
        gram(height, width, residual, width, 1, symmetric);
        for (int i = 0; i < height * height; i++) symmetric[i] = -symmetric[i];
        for (int i = 0; i < height; i++) symmetric[i * height + i] += 1 / (scale * scale);
        const Mask feasible = factor(height, symmetric);
        return (value <= tiny) | (feasible & (square >= 0) & (along > 0));
    }

    // As `certificate.relative_gap`.
    V relative_gap() {
        const V along = reach(), zero = fill(tiny);
        gram(height, width, residual, width, 1, symmetric);
        V top = V{};
        if (!spectrum(height, symmetric, basis, values, scratch)) return fill(1);
        for (int i = 0; i < height; i++) top = larger(top, values[i]);
        V scale = smaller(1 / larger(root(top), zero), along / larger(energy, zero));
        scale = larger(scale, V{});
        const V dual = scale * along - scale * scale * energy * T(0.5);
        const V reached = smaller(larger(1 - dual / larger(value, zero), V{}), fill(1));
        return value <= tiny ? V{} : reached;
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

}  // namespace
