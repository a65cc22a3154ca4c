/* The mean logit-Laplace loss and both its gradients in one pass over the data, for CPUs.

   XLA's CPU backend makes a loop of its own for the mean and for each gradient, and each of them
   reads everything and repeats the arithmetic. This is one loop, called through XLA's foreign
   function interface. Every ordinary value takes the branchless path that the C compiler turns
   into vector instructions; a block that holds any other value (x outside (0, 1) or subnormal, a
   parameter that is NaN or huge) is done again, value by value, as distribution/density.py has it. */

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
   The difference of the bit patterns is 2**23 log2 of the quotient to 0.09, so |u| < 0.21, and the
   first term of atanh that is left out is below 2**-27 of the sum. At p = 1 the numerator is 2m - 1,
   exact, which keeps the relative precision near x = 1/2. */
static inline float log_odds(float m) {
  int32_t e = (to_bits(1.0f - m) - to_bits(m) + 0x00400000) >> 23;
  float p = from_bits((127 + e) << 23);
  float u = fmaf(m, p + 1.0f, -1.0f) / fmaf(m, p - 1.0f, 1.0f);
  float v = u * u;
  float series = fmaf(fmaf(fmaf(fmaf(v, 2.0f / 9, 2.0f / 7), v, 2.0f / 5), v, 2.0f / 3), v, 2.0f);
  return fmaf((float)e, LN2, -series * u);
}

/* ln y for y in [1/2, 1], to 1e-7: the polynomial of degree 9 in y - 3/4 through the Chebyshev
   points, whose own error is 2e-8. */
static inline float log_upper_half(float y) {
  float z = y - 0.75f;
  float s = 1.87506807f;
  s = fmaf(s, z, -1.57386684f);
  s = fmaf(s, z, 1.04751062f);
  s = fmaf(s, z, -0.917767227f);
  s = fmaf(s, z, 0.843316555f);
  s = fmaf(s, z, -0.790549457f);
  s = fmaf(s, z, 0.79011935f);
  s = fmaf(s, z, -0.888885498f);
  s = fmaf(s, z, 1.33333337f);
  return fmaf(s, z, -0.287682086f);
}

/* exp(-s) for |s| < 80, to two units in the last place: 2**r exp(f) with |f| <= ln(2)/2, the
   series of exp to f**7/7!, and ln 2 in two parts, the first of which times r is exact. */
static inline float exp_minus(float s) {
  float r = nearbyintf(s * -1.44269504f);
  float f = fmaf(r, 2.12194440e-4f, fmaf(r, -0.693359375f, -s));
  float series = 1.0f / 5040;
  series = fmaf(series, f, 1.0f / 720);
  series = fmaf(series, f, 1.0f / 120);
  series = fmaf(series, f, 1.0f / 24);
  series = fmaf(series, f, 1.0f / 6);
  series = fmaf(series, f, 0.5f);
  series = fmaf(series, f * f, f) + 1.0f;
  return series * from_bits(((int32_t)r + 127) << 23);
}

/* Gradients times `weight` of `count` values, at most BLOCK and a multiple of LANES; returns the sum
   of the losses less ln 2 each, and whether any value was not ordinary, so that nothing here counts.
   */
static double ordinary(int count, const float *restrict x, const float *restrict loc,
                       const float *restrict log_scale, float *restrict by_loc,
                       float *restrict by_log_scale, float weight, int *other) {
  float sums[LANES] = {0};
  int strange = 0;
  for (int start = 0; start < count; start += LANES) {
    for (int lane = 0; lane < LANES; ++lane) {
      int i = start + lane;
      float y = x[i], mu = loc[i], s = log_scale[i];
      strange |= !((y >= FLT_MIN) & (y < 1.0f) & (fabsf(mu) < 1e15f) & (fabsf(s) < 80.0f));
      float z = 1.0f - y;
      float m = y > 0.5f ? z : y;
      float t = log_odds(m); /* |logit x| */
      float d = (y > 0.5f ? t : -t) - mu;
      float inv_scale = exp_minus(s);
      float distance = fabsf(d) * inv_scale;
      float slope = d > 0.0f ? inv_scale : (d < 0.0f ? -inv_scale : 0.0f);
      by_loc[i] = -slope * weight;
      by_log_scale[i] = (1.0f - distance) * weight;
      sums[lane] += distance + s + (2.0f * log_upper_half(1.0f - m) - t);
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
  const float *map, *loc, *log_scale;
  float *by_loc, *by_log_scale;
  int64_t count, tasks;
  float weight;
  double *totals;         /* one a task, added up in their order: threads change no bits */
  atomic_long next, done; /* tasks handed out, tasks finished */
  atomic_int users;       /* threads that may still look at this */
} Work;

static void run_task(Work *work, long task) {
  int64_t start = (int64_t)task * TASK, stop = start + TASK;
  if (stop > work->count) stop = work->count;
  double total = 0.0;
  float mapped[BLOCK];
  for (; start < stop; start += BLOCK) {
    int count = stop - start < BLOCK ? (int)(stop - start) : BLOCK;
    const float *x = mapped, *loc = work->loc + start, *log_scale = work->log_scale + start;
    float *by_loc = work->by_loc + start, *by_log_scale = work->by_log_scale + start;
    if (work->pixels) {
      const float *map = work->map;
      for (int i = 0; i < count; ++i) {
        float k = work->pixels[start + i];
        mapped[i] = fmaf(k, map[0], fmaf(k, map[1], map[2]));
      }
    } else {
      x = work->x + start;
    }
    int even = count - count % LANES, other;
    double sum = ordinary(even, x, loc, log_scale, by_loc, by_log_scale, work->weight, &other);
    if (other) sum = any(even, x, loc, log_scale, by_loc, by_log_scale, work->weight);
    total += sum + any(count - even, x + even, loc + even, log_scale + even, by_loc + even,
                       by_log_scale + even, work->weight);
  }
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
   (mean loss [], its gradients in loc [n] and log_scale [n]), all float32. */
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
