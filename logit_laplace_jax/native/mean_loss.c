/* The mean logit-Laplace loss and both its gradients in one pass over the data, for CPUs.

   XLA's CPU backend makes a loop of its own for the mean and for each gradient, and each of them
   reads everything and repeats the arithmetic. This is one loop, called through XLA's foreign
   function interface. Every ordinary value takes the branchless path that the C compiler turns
   into vector instructions; a block that holds any other value (x outside (0, 1) or subnormal, a
   parameter that is NaN or huge) is done again, value by value, as distribution/density.py has
   it. */

#include <float.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#if defined(__x86_64__) && !defined(__FMA__)
#error "without fused multiply-add instructions XLA's own loops are faster"
#endif

enum {
  LANES = 16,            /* partial sums: at least as many as a vector has elements */
  BLOCK = 1024,          /* values between two looks at the irregular ones */
  TASK = 64 * BLOCK      /* values that a thread takes at a time */
};

static const float LN2 = 0.693147180559945f;

static inline float from_bits(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline int32_t to_bits(float value) {
  int32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* --- Ordinary values ------------------------------------------------------------------------ */

/* ln((1 - m)/m) for a normal m in (0, 1/2], to two units in the last place.

   With p a power of two near (1 - m)/m it is ln p - 2 atanh u, u = (m p - (1 - m))/(m p + 1 - m).
   The difference of the bit patterns is 2**23 log2 of the quotient to 0.09, so |u| <= 0.2, where
   the polynomial, 2 atanh(u)/u through the Chebyshev points of u**2, is right to 1e-8. At p = 1
   the numerator is 2m - 1, exact, which keeps the relative precision near x = 1/2. */
static inline float log_odds(float m) {
  int32_t e = (to_bits(1.0f - m) - to_bits(m) + 0x00400000) >> 23;
  float p = from_bits((127 + e) << 23);
  float u = fmaf(m, p + 1.0f, -1.0f) / fmaf(m, p - 1.0f, 1.0f);
  float v = u * u;
  float series = fmaf(fmaf(fmaf(0.306528181f, v, 0.399412036f), v, 0.666671932f), v, 2.0f);
  return fmaf((float)e, LN2, -series * u);
}

/* 2 ln y for y in [1/2, 1], to 2e-7: the polynomial of degree 9 in y - 3/4 through the Chebyshev
   points, whose own error is 4e-8. */
static inline float twice_log(float y) {
  float z = y - 0.75f;
  float s = 3.75013614f;
  s = fmaf(s, z, -3.14773369f);
  s = fmaf(s, z, 2.09502125f);
  s = fmaf(s, z, -1.83553445f);
  s = fmaf(s, z, 1.68663311f);
  s = fmaf(s, z, -1.58109891f);
  s = fmaf(s, z, 1.5802387f);
  s = fmaf(s, z, -1.777771f);
  s = fmaf(s, z, 2.66666675f);
  return fmaf(s, z, -0.575364172f);
}

/* exp(-s) for |s| < 40, to two units in the last place: 2**r exp(f) with |f| <= ln(2)/2, and ln 2
   in two parts, the first of which times r is exact. The polynomial is (exp(f) - 1 - f)/f**2
   through the Chebyshev points; exp(f) from it is right to 1e-8. */
static inline float exp_minus(float s) {
  float r = nearbyintf(s * -1.44269504f);
  float f = fmaf(r, 2.12194440e-4f, fmaf(r, -0.693359375f, -s));
  float series = 0.00139262504f;
  series = fmaf(series, f, 0.00836323295f);
  series = fmaf(series, f, 0.0416665524f);
  series = fmaf(series, f, 0.166665763f);
  series = fmaf(series, f, 0.5f);
  series = fmaf(series, f * f, f) + 1.0f;
  return series * from_bits(((int32_t)r + 127) << 23);
}

/* Gradients times `weight` of `count` values, at most BLOCK and a multiple of LANES; returns the
   sum of the losses less ln 2 each, and whether any value was not ordinary, so that nothing here
   counts. */
static double ordinary(int count, const float *restrict x, const float *restrict loc,
                       const float *restrict log_scale, float *restrict by_loc,
                       float *restrict by_log_scale, float weight, int *other) {
  float sums[LANES] = {0};
  int strange = 0;
  for (int start = 0; start < count; start += LANES) {
    for (int lane = 0; lane < LANES; ++lane) {
      int i = start + lane;
      float y = x[i], mu = loc[i], s = log_scale[i];
      /* Ordinary: y in [FLT_MIN, 1), by its bits; |mu| < 4e14 and |s| < 40, so that nothing below
         overflows; and nothing is NaN. */
      strange |= (uint32_t)(to_bits(y) - 0x00800000) >= 0x3f000000u;
      strange |= !(fmaf(fabsf(mu), 1e-13f, fabsf(s)) < 40.0f);
      float z = 1.0f - y;
      float t = log_odds(z < y ? z : y); /* |logit x| */
      float d = copysignf(t, y - 0.5f) - mu;
      float inv_scale = exp_minus(s);
      float distance = fabsf(d) * inv_scale;
      by_loc[i] = d == 0.0f ? 0.0f : copysignf(inv_scale * weight, -d);
      by_log_scale[i] = fmaf(-distance, weight, weight);
      sums[lane] += distance + s + (twice_log(z < y ? y : z) - t);
    }
  }
  double total = 0.0;
  for (int lane = 0; lane < LANES; ++lane) total += sums[lane];
  *other = strange;
  return total;
}

/* --- All values ----------------------------------------------------------------------------- */

static double saturate(double y) { return y > FLT_MAX ? FLT_MAX : y < -FLT_MAX ? -FLT_MAX : y; }

/* The same for any values, as distribution/density.py has it. In double arithmetic, with the
   overflow and underflow of float32 where XLA has them. */
static double any(int count, const float *x, const float *loc, const float *log_scale,
                  float *by_loc, float *by_log_scale, float weight) {
  double total = 0.0;
  for (int i = 0; i < count; ++i) {
    int32_t bits = to_bits(x[i]);
    /* By the bits: XLA has its threads read subnormal numbers as zero. */
    int inside = bits > 0 && bits < 0x3f800000, nan_x = (bits & 0x7fffffff) > 0x7f800000;
    double y = !inside ? 0.5 : bits < 0x00800000 ? ldexp(bits, -149) : x[i];
    if (nan_x) y = NAN;
    double t = log(y) - log1p(-y), d = t - loc[i], s = log_scale[i];
    if (fabs(y - 0.5) < 0.25) t = log1p((2.0 * y - 1.0) / (1.0 - y)), d = t - loc[i];
    double inv_scale = (float)exp(-s);
    if (inv_scale < FLT_MIN) inv_scale = 0.0;
    double distance = d == 0.0 ? 0.0 : fabs(d) * inv_scale;
    double slope = d > 0.0 ? inv_scale : d < 0.0 ? -inv_scale : d;
    double value = distance + saturate(s) + (log(y) + log1p(-y));
    int counts = inside || nan_x;
    by_loc[i] = counts ? (float)saturate(-slope) * weight : 0.0f;
    by_log_scale[i] = counts ? (float)saturate(1.0 - distance) * weight : 0.0f;
    total += counts || isnan(value) ? (float)value : INFINITY;
  }
  return total;
}

/* --- The work, and who does it -------------------------------------------------------------- */

typedef struct {
  const float *x;        /* targets in (0, 1), or NULL */
  const uint8_t *pixels; /* 8-bit pixels k, for the target map[0] k + map[1] k + map[2] */
  const float *map;
  const void *loc, *log_scale; /* float32, or bfloat16 if `half`; their gradients too */
  void *by_loc, *by_log_scale;
  int half;
  int64_t count, tasks;
  float weight;
  double *totals;         /* one a task, added up in their order: threads change no bits */
  atomic_long next, done; /* tasks handed out, tasks finished */
  atomic_int users;       /* threads that may still look at this */
} Work;

/* One value a line: each loop is vector instructions, on arrays that stay in the first cache. */
static void widen(int count, const uint16_t *restrict in, float *restrict out) {
  for (int i = 0; i < count; ++i) out[i] = from_bits((int32_t)((uint32_t)in[i] << 16));
}

static void narrow(int count, const float *restrict in, uint16_t *restrict out) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits = (uint32_t)to_bits(in[i]);
    uint32_t even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
    out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : even);
  }
}

static void map_levels(int count, const uint8_t *restrict k, const float *restrict map,
                       float *restrict out) {
  for (int i = 0; i < count; ++i) {
    float level = k[i];
    out[i] = fmaf(level, map[0], fmaf(level, map[1], map[2]));
  }
}

static double run_block(const Work *work, int64_t start, int count) {
  float mapped[BLOCK], wide[2][BLOCK], gradients[2][BLOCK];
  const float *x = mapped, *loc = wide[0], *log_scale = wide[1];
  float *by_loc = gradients[0], *by_log_scale = gradients[1];
  if (work->pixels) {
    map_levels(count, work->pixels + start, work->map, mapped);
  } else {
    x = work->x + start;
  }
  if (work->half) {
    widen(count, (const uint16_t *)work->loc + start, wide[0]);
    widen(count, (const uint16_t *)work->log_scale + start, wide[1]);
  } else {
    loc = (const float *)work->loc + start;
    log_scale = (const float *)work->log_scale + start;
    by_loc = (float *)work->by_loc + start;
    by_log_scale = (float *)work->by_log_scale + start;
  }
  int even = count - count % LANES, other;
  double sum = ordinary(even, x, loc, log_scale, by_loc, by_log_scale, work->weight, &other);
  if (other) sum = any(even, x, loc, log_scale, by_loc, by_log_scale, work->weight);
  sum += any(count - even, x + even, loc + even, log_scale + even, by_loc + even,
             by_log_scale + even, work->weight);
  if (work->half) {
    narrow(count, by_loc, (uint16_t *)work->by_loc + start);
    narrow(count, by_log_scale, (uint16_t *)work->by_log_scale + start);
  }
  return sum;
}

static void run_task(Work *work, long task) {
  int64_t start = (int64_t)task * TASK, stop = start + TASK;
  if (stop > work->count) stop = work->count;
  double total = 0.0;
  for (; start < stop; start += BLOCK)
    total += run_block(work, start, stop - start < BLOCK ? (int)(stop - start) : BLOCK);
  work->totals[task] = total;
}

static void leave(Work *work) {
  if (atomic_fetch_sub(&work->users, 1) == 1) {
    free(work->totals);
    free(work);
  }
}

static void take_tasks(Work *work) {
  for (;;) {
    long task = atomic_fetch_add(&work->next, 1);
    if (task >= work->tasks) return;
    run_task(work, task);
    atomic_fetch_add(&work->done, 1);
  }
}

/* A helping thread. It may start when all is done, and must then touch nothing but `work`. */
static void help(void *data) {
  take_tasks(data);
  leave(data);
}

static void share_out(const XLA_FFI_CallFrame *frame, Work *work) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {0};
  asked.struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE;
  asked.ctx = frame->ctx;
  asked.num_threads = &threads;
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&asked);
  if (threads > work->tasks) threads = work->tasks;
  for (int64_t i = 1; i < threads && !error; ++i) {
    XLA_FFI_ThreadPool_Schedule_Args scheduled = {0};
    scheduled.struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE;
    scheduled.ctx = frame->ctx;
    scheduled.task = help;
    scheduled.data = work;
    atomic_fetch_add(&work->users, 1);
    error = frame->api->XLA_FFI_ThreadPool_Schedule(&scheduled);
    if (error) atomic_fetch_sub(&work->users, 1);
  }
  if (error) { /* No pool: this thread does it all. */
    XLA_FFI_Error_Destroy_Args destroyed = {0};
    destroyed.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
    destroyed.error = error;
    frame->api->XLA_FFI_Error_Destroy(&destroyed);
  }
  take_tasks(work);
  while (atomic_load(&work->done) < work->tasks) sched_yield();
}

/* --- XLA's side ----------------------------------------------------------------------------- */

static XLA_FFI_Error *failure(const XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args args = {0};
  args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
  args.message = message;
  args.errc = XLA_FFI_Error_Code_INTERNAL;
  return frame->api->XLA_FFI_Error_Create(&args);
}

static const XLA_FFI_Buffer *argument(const XLA_FFI_CallFrame *frame, int64_t index) {
  return frame->args.args[index];
}

static void *result(const XLA_FFI_CallFrame *frame, int64_t index) {
  return ((const XLA_FFI_Buffer *)frame->rets.rets[index])->data;
}

/* (x float32 [n], loc, log_scale) or (pixels uint8 [n], loc, log_scale, map float32 [3]) to
   (mean loss float32 [], its gradients in loc and log_scale). loc, log_scale and their gradients
   are all float32 [n], or all bfloat16. */
XLA_FFI_Error *logit_laplace_mean_loss(XLA_FFI_CallFrame *frame) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    metadata->traits = 0;
    return NULL;
  }
  const XLA_FFI_Buffer *target = argument(frame, 0);
  Work *work = calloc(1, sizeof *work);
  if (!work) return failure(frame, "logit_laplace_mean_loss: out of memory");
  int64_t count = 1;
  for (int64_t axis = 0; axis < target->rank; ++axis) count *= target->dims[axis];
  work->count = count;
  work->tasks = (count + TASK - 1) / TASK;
  work->weight = (float)(1.0 / (double)count);
  work->totals = calloc((size_t)work->tasks + 1, sizeof *work->totals);
  if (!work->totals) {
    free(work);
    return failure(frame, "logit_laplace_mean_loss: out of memory");
  }
  if (target->dtype == XLA_FFI_DataType_U8) {
    work->pixels = target->data;
    work->map = argument(frame, 3)->data;
  } else {
    work->x = target->data;
  }
  work->half = argument(frame, 1)->dtype == XLA_FFI_DataType_BF16;
  work->loc = argument(frame, 1)->data;
  work->log_scale = argument(frame, 2)->data;
  work->by_loc = result(frame, 1);
  work->by_log_scale = result(frame, 2);
  atomic_store(&work->users, 1);
  share_out(frame, work);
  double total = 0.0;
  for (int64_t task = 0; task < work->tasks; ++task) total += work->totals[task];
  *(float *)result(frame, 0) = (float)(total / (double)count + 0.6931471805599453);
  leave(work);
  return NULL;
}
