/* Kernels of integer networks in plain C99, by mpsearch. SPDX-License-Identifier: Apache-2.0
 *
 * Maps are channels first (C, H, W), int8: value = scale * (q - zero). Nothing is allocated, nothing is static. Define
 * MPS_WIDEST before this file.
 * Sums are requantized with TFLite's multipliers, rounded as its reference kernels do. */
#ifndef MPS_KERNELS_H
#define MPS_KERNELS_H
#include <stddef.h>
#include <stdint.h>

typedef struct { int32_t multiplier; int8_t shift; } mps_factor;

typedef struct { /* a convolution, or a linear map: one of 1 x 1 maps */
  const uint8_t *weights; /* codes without gaps, low bits first, each output channel from a whole byte: [in][kh][kw] */
  const uint8_t *zero;    /* by output channel: weight = code * (1 + doubled) - zero */
  const int32_t *bias, *multiplier;
  const int8_t *shift;
  uint8_t bits, doubled;
  int32_t in, out, groups, kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int32_t h, w, oh, ow;
  int8_t zero_in, zero_out, low, high;
} mps_layer;

static inline int32_t mps_multiply(int64_t x, int32_t multiplier, int shift) {
  int64_t product = (shift > 0 ? x * ((int64_t)1 << shift) : x) * multiplier;
  int64_t nudge = product >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30);
  int64_t high = (product + nudge) / ((int64_t)1 << 31);
  int right = shift < 0 ? -shift : 0;
  int64_t mask = ((int64_t)1 << right) - 1, rest = high & mask, threshold = (mask >> 1) + (high < 0);
  return (int32_t)((high >> right) + (rest > threshold));
}

static inline int8_t mps_clamp(int32_t v, int32_t low, int32_t high) {
  return (int8_t)(v < low ? low : v > high ? high : v);
}

static inline int32_t mps_code(const uint8_t *packed, size_t index, int bits) {
  size_t at = index * (size_t)bits;
  unsigned value = packed[at >> 3];
  if ((at & 7) + (size_t)bits > 8) value |= (unsigned)packed[(at >> 3) + 1] << 8;
  return (int32_t)((value >> (at & 7)) & ((1u << bits) - 1u));
}

/* `row` is room for the weights of one output channel; MPS_WIDEST is the width of the widest map. */
static inline void mps_conv(const mps_layer *l, const int8_t *x, int8_t *y, int8_t *row) {
  int32_t sums[MPS_WIDEST];
  const int32_t per_in = l->in / l->groups, per_out = l->out / l->groups, taps = per_in * l->kh * l->kw;
  const size_t bytes = ((size_t)taps * l->bits + 7) / 8;
  for (int32_t o = 0; o < l->out; o++) {
    const uint8_t *packed = l->weights + bytes * (size_t)o;
    const int8_t *first = x + (size_t)(o / per_out * per_in) * (size_t)(l->h * l->w);
    for (int32_t k = 0; k < taps; k++)
      row[k] = (int8_t)(mps_code(packed, (size_t)k, l->bits) * (1 + l->doubled) - l->zero[o]);
    for (int32_t i = 0; i < l->oh; i++) {
      const int8_t *w = row;
      for (int32_t j = 0; j < l->ow; j++) sums[j] = l->bias[o];
      for (int32_t c = 0; c < per_in; c++)
        for (int32_t a = 0; a < l->kh; a++) {
          const int32_t r = i * l->stride_h + a * l->dilation_h - l->pad_h;
          if (r < 0 || r >= l->h) {
            w += l->kw;
            continue;
          }
          const int8_t *line = first + ((size_t)c * (size_t)l->h + (size_t)r) * (size_t)l->w;
          for (int32_t b = 0; b < l->kw; b++, w++) {
            const int32_t shift = b * l->dilation_w - l->pad_w, step = l->stride_w;
            const int32_t from = shift < 0 ? (step - 1 - shift) / step : 0;
            int32_t to = l->w > shift ? (l->w - 1 - shift) / step + 1 : 0;
            if (to > l->ow) to = l->ow;
            for (int32_t j = from; j < to; j++) sums[j] += *w * (line[j * step + shift] - l->zero_in);
          }
        }
      for (int32_t j = 0; j < l->ow; j++)
        *y++ = mps_clamp(mps_multiply(sums[j], l->multiplier[o], l->shift[o]) + l->zero_out, l->low, l->high);
    }
  }
}

/* Where an operand is smaller than the result, each of its values serves `over` results in a row. */
static inline void mps_add(const int8_t *a, const int8_t *b, int8_t *y, size_t n, size_t over_a, size_t over_b,
                           int za, int zb, int zy, mps_factor fa, mps_factor fb, mps_factor fy, int low, int high) {
  for (size_t i = 0; i < n; i++) {
    int32_t left = mps_multiply((int64_t)(a[i / over_a] - za) * (1 << 20), fa.multiplier, fa.shift);
    int32_t right = mps_multiply((int64_t)(b[i / over_b] - zb) * (1 << 20), fb.multiplier, fb.shift);
    y[i] = mps_clamp(mps_multiply((int64_t)left + right, fy.multiplier, fy.shift) + zy, low, high);
  }
}

static inline void mps_mul(const int8_t *a, const int8_t *b, int8_t *y, size_t n, size_t over_a, size_t over_b,
                           int za, int zb, int zy, mps_factor f, int low, int high) {
  for (size_t i = 0; i < n; i++) {
    int32_t product = (a[i / over_a] - za) * (b[i / over_b] - zb);
    y[i] = mps_clamp(mps_multiply(product, f.multiplier, f.shift) + zy, low, high);
  }
}

/* Of `outer` rows, the `take` values of x in each go to y, whose rows have `stride`; a slice, or a part of a concat. */
static inline void mps_rescale(const int8_t *x, int8_t *y, size_t outer, size_t take, size_t stride, int zx, int zy,
                               mps_factor f, int low, int high) {
  for (size_t r = 0; r < outer; r++)
    for (size_t i = 0; i < take; i++)
      y[r * stride + i] = mps_clamp(mps_multiply(x[r * take + i] - zx, f.multiplier, f.shift) + zy, low, high);
}

static inline void mps_mean(const int8_t *x, int8_t *y, size_t outer, size_t inner, int zx, int zy, mps_factor f,
                            int low, int high) {
  for (size_t r = 0; r < outer; r++) {
    int64_t sum = 0;
    for (size_t i = 0; i < inner; i++) sum += x[r * inner + i] - zx;
    y[r] = mps_clamp(mps_multiply(sum, f.multiplier, f.shift) + zy, low, high);
  }
}

typedef struct { int32_t c, h, w, oh, ow, kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w; } mps_window;

static inline void mps_max_pool(const mps_window *p, const int8_t *x, int8_t *y, int low, int high) {
  for (int32_t c = 0; c < p->c; c++, x += (size_t)p->h * (size_t)p->w)
    for (int32_t i = 0; i < p->oh; i++)
      for (int32_t j = 0; j < p->ow; j++) {
        int32_t best = -128;
        for (int32_t a = 0; a < p->kh; a++)
          for (int32_t b = 0; b < p->kw; b++) {
            const int32_t r = i * p->stride_h + a * p->dilation_h - p->pad_h;
            const int32_t s = j * p->stride_w + b * p->dilation_w - p->pad_w;
            if (r >= 0 && r < p->h && s >= 0 && s < p->w && x[(size_t)r * (size_t)p->w + (size_t)s] > best)
              best = x[(size_t)r * (size_t)p->w + (size_t)s];
          }
        *y++ = mps_clamp(best, low, high);
      }
}

static inline void mps_average_pool(const mps_window *p, const int8_t *x, int8_t *y, int zx, int zy, mps_factor f,
                                    int low, int high) {
  for (int32_t c = 0; c < p->c; c++, x += (size_t)p->h * (size_t)p->w)
    for (int32_t i = 0; i < p->oh; i++)
      for (int32_t j = 0; j < p->ow; j++) {
        int32_t sum = 0;
        for (int32_t a = 0; a < p->kh; a++)
          for (int32_t b = 0; b < p->kw; b++)
            sum += x[(size_t)(i * p->stride_h + a) * (size_t)p->w + (size_t)(j * p->stride_w + b)] - zx;
        *y++ = mps_clamp(mps_multiply(sum, f.multiplier, f.shift) + zy, low, high);
      }
}

static inline void mps_table(const int8_t *x, int8_t *y, size_t n, const int8_t *table) {
  for (size_t i = 0; i < n; i++) y[i] = table[x[i] + 128];
}

static inline void mps_copy(const int8_t *x, int8_t *y, size_t n, int low, int high) {
  for (size_t i = 0; i < n; i++) y[i] = mps_clamp(x[i], low, high);
}

/* y[i][j][k] = x[i][start + j * step][k] for j below `count`. */
static inline void mps_slice(const int8_t *x, int8_t *y, size_t outer, size_t size, size_t inner, size_t start,
                             size_t step, size_t count) {
  for (size_t i = 0; i < outer; i++)
    for (size_t j = 0; j < count; j++)
      for (size_t k = 0; k < inner; k++) *y++ = x[(i * size + start + j * step) * inner + k];
}

/* y is written in order; an index of its axis `a` moves `strides[a]` in x. */
static inline void mps_permute(const int8_t *x, int8_t *y, int rank, const int32_t *sizes, const int32_t *strides) {
  int32_t at[8] = {0};
  for (;;) {
    size_t from = 0;
    int axis = rank - 1;
    for (int a = 0; a < rank; a++) from += (size_t)at[a] * (size_t)strides[a];
    *y++ = x[from];
    while (axis >= 0 && ++at[axis] == sizes[axis]) at[axis--] = 0;
    if (axis < 0) return;
  }
}

static inline void mps_nearest(const int8_t *x, int8_t *y, int32_t c, int32_t h, int32_t w, int32_t fh, int32_t fw) {
  for (int32_t p = 0; p < c; p++, x += (size_t)h * (size_t)w)
    for (int32_t i = 0; i < h * fh; i++)
      for (int32_t j = 0; j < w * fw; j++) *y++ = x[(size_t)(i / fh) * (size_t)w + (size_t)(j / fw)];
}
#endif
