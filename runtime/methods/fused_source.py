"""CUDA source of the fused kernels, which CuPy compiles when they are first used."""

SOURCE = r"""
#ifndef THREADS
#define THREADS 256  // per block: a power of two
#endif
#define INFINITE __int_as_float(0x7f800000)
#define LEAST 1.17549435e-38f  // zeros are lifted to it before their logarithm is taken

// The sum, or the largest, of one value per thread of the block, for all threads. Values must not be negative for the
// largest. Every thread of the block must call it.
__device__ float over_block(float value, bool largest) {
    __shared__ float shared[THREADS];
    const int t = threadIdx.x;
    __syncthreads();  // an earlier result may still be read
    shared[t] = value;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (t < step) {
            const float other = shared[t + step];
            shared[t] = largest ? fmaxf(shared[t], other) : shared[t] + other;
        }
        __syncthreads();
    }
    return shared[0];
}

// Position of a bilinear resize with half-pixel centres: the lower neighbour, and the weight of the upper one.
__device__ int neighbour(int i, int size, int target, float* fraction) {
    float position = (i + 0.5f) * ((float)size / (float)target) - 0.5f;
    position = fminf(fmaxf(position, 0.0f), (float)(size - 1));
    const int lower = (int)position;
    *fraction = position - lower;
    return lower;
}

__device__ float between(float low, float high, float fraction) { return (high - low) * fraction + low; }

// Entry (y, x) of a map (h, w) that is resized to (H, W): columns first, as on the CPU.
__device__ float resized(const float* map, int h, int w, int H, int W, int y, int x) {
    if (h == H && w == W) return map[y * w + x];
    float fy, fx;
    const int y0 = neighbour(y, h, H, &fy), x0 = neighbour(x, w, W, &fx);
    const int y1 = min(y0 + 1, h - 1), x1 = min(x0 + 1, w - 1);
    const float above = between(map[y0 * w + x0], map[y0 * w + x1], fx);
    const float below = between(map[y1 * w + x0], map[y1 * w + x1], fx);
    return between(above, below, fy);
}

// One resolution of the aggregation, one block per query: its map (h, w) is resized to (H, W), divided by its sum,
// multiplied by its share, and added to the map of the coarser query that covers it. `parents` is null, or holds
// (ph * pw, H * W). `out` may be `maps` if no resize is needed. Counts rows that are not distributions.
extern "C" __global__ void aggregate_level(
    const float* maps, const float* parents, float* out, int* mended,
    int h, int w, int H, int W, int ph, int pw, float share) {
    const int q = blockIdx.x, n = H * W;
    const float* map = maps + (size_t)q * h * w;
    float largest = 0.0f, bad = 0.0f;
    for (int k = threadIdx.x; k < n; k += THREADS) {
        const float value = resized(map, h, w, H, W, k / W, k % W);
        if (!isfinite(value) || value < 0.0f) bad = 1.0f;
        else largest = fmaxf(largest, value);
    }
    largest = over_block(largest, true);
    bad = over_block(bad, true);
    float total = 0.0f;
    if (largest > 0.0f) {  // relative to the largest entry, sums neither overflow nor vanish
        for (int k = threadIdx.x; k < n; k += THREADS) {
            const float value = resized(map, h, w, H, W, k / W, k % W);
            if (isfinite(value) && value > 0.0f) total += value / largest;
        }
    }
    total = over_block(total, false);
    if (threadIdx.x == 0 && (bad > 0.0f || largest <= 0.0f)) atomicAdd(mended, 1);
    const float* parent = 0;
    if (parents) parent = parents + (size_t)((q / w) / (h / ph) * pw + (q % w) / (w / pw)) * n;
    float* row = out + (size_t)q * n;
    for (int k = threadIdx.x; k < n; k += THREADS) {
        float value = share / n;
        if (largest > 0.0f) {
            value = resized(map, h, w, H, W, k / W, k % W);
            value = isfinite(value) && value > 0.0f ? value / largest * (share / total) : 0.0f;
        }
        row[k] = parent ? value + parent[k] : value;
    }
}

// One block per map: the logarithms of its n entries, plus `shift`, and the sum of x log x.
extern "C" __global__ void log_terms(const float* maps, float* logs, float* terms, int n, float shift) {
    const size_t start = (size_t)blockIdx.x * n;
    float sum = 0.0f;
    for (int k = threadIdx.x; k < n; k += THREADS) {
        const float value = maps[start + k], logarithm = logf(fmaxf(value, LEAST)) + shift;
        logs[start + k] = logarithm;
        sum += value * logarithm;
    }
    sum = over_block(sum, false);
    if (threadIdx.x == 0) terms[blockIdx.x] = sum;
}

// Distances of a block of maps, from row `start` on, to the anchors: one block per map. Both products are
// (rows, anchors); `where` holds the row of each anchor, whose distance to itself is -infinity.
extern "C" __global__ void distances(
    const float* terms, const float* anchor_terms, const float* product, const float* anchor_product,
    const long long* where, float* values, int start, int anchors) {
    const int i = blockIdx.x;
    for (int j = threadIdx.x; j < anchors; j += THREADS) {
        const size_t at = (size_t)i * anchors + j;
        const float distance = terms[i] + anchor_terms[j] - product[at] - anchor_product[at];
        values[(size_t)start * anchors + at] = where[j] == start + i ? -INFINITE : distance;
    }
}

// One block per anchor: the weights (anchors, rows) of the mean of all maps whose distance is below `limit`.
extern "C" __global__ void near_weights(
    const float* values, float* weights, int* count, int rows, int anchors, float limit) {
    const int j = blockIdx.x;
    float hits = 0.0f;
    for (int i = threadIdx.x; i < rows; i += THREADS) hits += values[(size_t)i * anchors + j] < limit ? 1.0f : 0.0f;
    hits = over_block(hits, false);
    for (int i = threadIdx.x; i < rows; i += THREADS)
        weights[(size_t)j * rows + i] = values[(size_t)i * anchors + j] < limit ? 1.0f / hits : 0.0f;
    if (j == 0 && threadIdx.x == 0) *count = anchors;
}

__device__ bool within(const float* terms, const float* cross, int m, int i, int j, float limit) {
    return i == j || terms[i] + terms[j] - cross[(size_t)i * m + j] - cross[(size_t)j * m + i] < limit;
}

// A later round, in a single block: walks through the first *old of m maps in order; the maps close to an unmatched one
// are averaged and marked. Writes one row of weights (m, m) per group, zeros below them, and the number of groups.
extern "C" __global__ void greedy_weights(
    const float* terms, const float* cross, const int* old, float* weights, int* matched, int* count,
    int m, float limit) {
    const int maps = *old;
    for (int j = threadIdx.x; j < m; j += THREADS) matched[j] = 0;
    __syncthreads();
    int groups = 0;
    for (int i = 0; i < maps; i++) {
        const int done = matched[i];
        __syncthreads();  // all threads have read it before any of them marks it
        if (done) continue;
        float hits = 0.0f;
        for (int j = threadIdx.x; j < maps; j += THREADS) hits += within(terms, cross, m, i, j, limit) ? 1.0f : 0.0f;
        hits = over_block(hits, false);
        for (int j = threadIdx.x; j < m; j += THREADS) {
            const bool hit = j < maps && within(terms, cross, m, i, j, limit);
            weights[(size_t)groups * m + j] = hit ? 1.0f / hits : 0.0f;
            if (hit) matched[j] = 1;
        }
        groups++;
        __syncthreads();
    }
    for (size_t k = (size_t)groups * m + threadIdx.x; k < (size_t)m * m; k += THREADS) weights[k] = 0.0f;
    if (threadIdx.x == 0) *count = groups;
}

// One thread per pixel of some rows of (H, W): `size` pixels, from row `first` on. The first *count proposals (h, w)
// are resized, rows first as on the CPU, and the index of the largest is written. `positions` (2, H + W) holds the cell
// before each row and each column, then the weight of the cell behind it. Two more entries of `labels` receive the low
// and the high half of *mended, so that one copy brings everything to the host.
extern "C" __global__ void suppress(
    const float* proposals, const int* count, const int* mended, const float* positions, unsigned short* labels,
    int h, int w, int H, int W, int first, int size) {
    const int pixel = blockIdx.x * THREADS + threadIdx.x;
    if (pixel == 0) {
        labels[size] = (unsigned short)(*mended & 0xffff);
        labels[size + 1] = (unsigned short)(*mended >> 16);
    }
    if (pixel >= size) return;
    const int row = first + pixel / W, column = H + pixel % W;
    const int y0 = (int)positions[row], x0 = (int)positions[column];
    const float fy = positions[H + W + row], fx = positions[H + W + column];
    const int y1 = min(y0 + 1, h - 1), x1 = min(x0 + 1, w - 1);
    const int proposal_count = *count;
    int best = 0;
    float most = -INFINITE;
    for (int k = 0; k < proposal_count; k++) {
        const float* map = proposals + (size_t)k * h * w;
        const float left = between(map[y0 * w + x0], map[y1 * w + x0], fy);
        const float right = between(map[y0 * w + x1], map[y1 * w + x1], fy);
        const float value = between(left, right, fx);
        if (value > most) {
            most = value;
            best = k;
        }
    }
    labels[pixel] = (unsigned short)best;
}
"""
