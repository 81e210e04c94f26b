// Modulated normalisation, vectorised (compiled once per SIMD level, see simd.h).
#include "modulated_norm_kernels.h"

#include "vector_math.h"

namespace torchext {
namespace TORCHEXT_SIMD {
namespace {

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Asks for a row that will be read next, where it lies apart: the processor foresees no jump.
template <class T>
inline void fetch(const T* row, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(row + i);
}

inline float root(float x) {
  return __builtin_sqrtf(x);
}
inline double root(double x) {
  return __builtin_sqrt(x);
}

// What a loop over a row reads at i: a value along the row, or the same everywhere.
template <class A>
struct Along {
  const A* values;
  A operator[](int64_t i) const { return values[i]; }
};
template <class A>
struct Constant {
  A value;
  A operator[](int64_t) const { return value; }
};

// An operand in the accumulate type; `absent` is its value where there is none.
template <class T>
class Operand {
 public:
  using A = accumulate_t<T>;
  Operand(const RowInput<T>& input, A absent, int64_t count) {
    if (input.elements != nullptr) {
      along_ = tile_(input.elements, count);
    } else if (input.index != nullptr) {
      along_ = gathered_;
      const A* __restrict from = input.values;
      const int32_t* __restrict rows = input.index;
      const int64_t stride = input.stride;
      if (stride == 1)
        for (int64_t i = 0; i < count; ++i) gathered_[i] = from[rows[i]];
      else
        for (int64_t i = 0; i < count; ++i) gathered_[i] = from[rows[i] * stride];
    } else if (input.along) {
      along_ = input.values;
    } else {
      constant_ = input.values != nullptr ? *input.values : absent;
    }
  }
  // Calls body with the operand as a loop reads it.
  template <class Body>
  void with(Body body) const {
    if (along_ != nullptr)
      body(Along<A>{along_});
    else
      body(Constant<A>{constant_});
  }
  const A* along() const { return along_; }

 private:
  InputTile<T> tile_;
  A gathered_[kTile];
  const A* along_ = nullptr;
  A constant_ = 0;
};

// What gamma stands for in the scale: itself, or its sigmoid.
template <class T>
class GammaOperand {
 public:
  using A = accumulate_t<T>;
  GammaOperand(const Modulation<T>& modulation, int64_t count)
      : raw_(modulation.gamma, A(0), count),
        sigmoid_(modulation.gain == Gain::kSigmoid && !modulation.gamma.absent()) {
    if (!sigmoid_) return;
    raw_.with([&](auto gamma) {
      const int64_t length = raw_.along() != nullptr ? count : 1;
      for (int64_t i = 0; i < length; ++i) values_[i] = sigmoid(gamma[i]);
    });
  }
  template <class Body>
  void with(Body body) const {
    if (!sigmoid_)
      raw_.with(body);
    else if (raw_.along() != nullptr)
      body(Along<A>{values_});
    else
      body(Constant<A>{values_[0]});
  }

 private:
  Operand<T> raw_;
  bool sigmoid_;
  A values_[kTile];
};

// Mean and rstd come together: both along the row, or both one number.
template <class T, class Body>
inline void with_statistics(const RowInput<T>& mean, const RowInput<T>& rstd, Body body) {
  using A = accumulate_t<T>;
  if (rstd.along && mean.along)
    body(Along<A>{mean.values}, Along<A>{rstd.values});
  else if (rstd.along)
    body(Constant<A>{A(0)}, Along<A>{rstd.values});
  else
    body(Constant<A>{mean.values != nullptr ? *mean.values : A(0)},
         Constant<A>{rstd.values != nullptr ? *rstd.values : A(1)});
}

template <class T>
inline accumulate_t<T> base_of(const Modulation<T>& modulation) {
  return modulation.gain == Gain::kPlain && !modulation.gamma.absent() ? 0 : 1;
}

template <class A>
inline A row_sum(const A* values, int64_t count) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// Where a row's results are formed: in place, or in a buffer that `commit` stores or adds up.
template <class T>
class Result {
 public:
  using A = accumulate_t<T>;
  explicit Result(const RowOutput<T>& output)
      : output_(output), values_(output.elements != nullptr ? tile_(output.elements) : buffer_) {}
  A* values() { return values_; }
  void commit(int64_t count) {
    if (output_.elements != nullptr) {
      tile_.commit(output_.elements, count);
    } else if (output_.along) {
      A* __restrict to = output_.values;
      for (int64_t i = 0; i < count; ++i) to[i] += values_[i];
    } else if (output_.values != nullptr) {
      *output_.values += row_sum(values_, count);
    }
  }
  bool wanted() const { return output_.elements != nullptr || output_.values != nullptr; }

 private:
  RowOutput<T> output_;
  OutputTile<T> tile_;
  A buffer_[kTile];
  A* values_;
};

}  // namespace

template <class T>
void modulate_row(const RowInput<T>& x, const RowInput<T>& mean, const RowInput<T>& rstd,
                  const Modulation<T>& modulation, int64_t count, int64_t next, T* y) {
  using A = accumulate_t<T>;
  if (next != 0 && modulation.gamma.elements != nullptr) {
    fetch(modulation.gamma.elements + next, count);
    fetch(modulation.beta.elements + next, count);
  }
  const Operand<T> value(x, A(0), count), beta(modulation.beta, A(0), count),
      weight(modulation.weight, A(1), count);
  const GammaOperand<T> gamma(modulation, count);
  const A base = base_of(modulation), slope = modulation.slope;
  const A* __restrict in = value.along();
  OutputTile<T> tile;
  A* __restrict out = tile(y);
  A normal[kTile];
  with_statistics(mean, rstd, [&](auto m, auto r) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) normal[i] = (in[i] - m[i]) * r[i];
  });
  gamma.with([&](auto g) {
    beta.with([&](auto b) {
      weight.with([&](auto w) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const A z = normal[i] * (base + g[i] * w[i]) + b[i] * w[i];
          out[i] = z > A(0) ? z : z * slope;
        }
      });
    });
  });
  tile.commit(y, count);
}

template <class T>
void gradient_row(const T* grad, const T* y, const RowInput<T>& x, const RowInput<T>& mean,
                  const RowInput<T>& rstd, const Modulation<T>& modulation,
                  const RowGradients<T>& out, int64_t count, accumulate_t<T>* gn,
                  accumulate_t<T>* xn) {
  using A = accumulate_t<T>;
  const Operand<T> value(x, A(0), count), weight(modulation.weight, A(1), count);
  const GammaOperand<T> gamma(modulation, count);
  const A base = base_of(modulation), slope = modulation.slope;
  const A* __restrict in = value.along();
  A* __restrict normal = xn;
  A* __restrict to = gn;

  // The gradient behind the activation: y has the sign of what was activated.
  InputTile<T> grad_tile, y_tile;
  A activated[kTile];
  const A* g = grad_tile(grad, count);
  if (y != nullptr) {
    const A* __restrict sign = y_tile(y, count);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) activated[i] = sign[i] > A(0) ? g[i] : g[i] * slope;
    g = activated;
  }
  const A* __restrict incoming = g;

  with_statistics(mean, rstd, [&](auto m, auto r) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) normal[i] = (in[i] - m[i]) * r[i];
  });
  gamma.with([&](auto t) {
    weight.with([&](auto w) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) to[i] = incoming[i] * (base + t[i] * w[i]);
    });
  });

  Result<T> gamma_gradient(out.gamma), beta_gradient(out.beta), weight_gradient(out.weight);
  if (gamma_gradient.wanted()) {
    A* __restrict to_gamma = gamma_gradient.values();
    A* __restrict to_beta = beta_gradient.values();
    weight.with([&](auto w) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const A weighted = incoming[i] * w[i];
        to_gamma[i] = weighted * normal[i];
        to_beta[i] = weighted;
      }
    });
    if (modulation.gain == Gain::kSigmoid)
      gamma.with([&](auto t) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to_gamma[i] *= t[i] * (A(1) - t[i]);
      });
    gamma_gradient.commit(count);
    beta_gradient.commit(count);
  }
  if (weight_gradient.wanted()) {
    const Operand<T> beta(modulation.beta, A(0), count);
    A* __restrict to_weight = weight_gradient.values();
    gamma.with([&](auto t) {
      beta.with([&](auto b) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to_weight[i] = incoming[i] * (normal[i] * t[i] + b[i]);
      });
    });
    weight_gradient.commit(count);
  }

  if (out.sum.along) {
    A* __restrict sum = out.sum.values;
    A* __restrict product = out.product.values;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      sum[i] += to[i];
      product[i] += to[i] * normal[i];
    }
  } else if (out.sum.values != nullptr) {
    A sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
    for (int64_t i = 0; i < count; ++i) {
      sum += to[i];
      product += to[i] * normal[i];
    }
    *out.sum.values += sum;
    *out.product.values += product;
  }
}

template <class T>
void input_gradient_row(const accumulate_t<T>* gn, const accumulate_t<T>* xn,
                        const RowInput<T>& rstd, const RowInput<T>& sum, const RowInput<T>& product,
                        int64_t count, T* grad_x) {
  using A = accumulate_t<T>;
  OutputTile<T> tile;
  A* __restrict out = tile(grad_x);
  const A* __restrict g = gn;
  const A* __restrict normal = xn;
  const auto write = [&](auto r, auto s, auto p) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = r[i] * (g[i] - s[i] - normal[i] * p[i]);
  };
  if (sum.along)
    write(Along<A>{rstd.values}, Along<A>{sum.values}, Along<A>{product.values});
  else if (rstd.along)  // statistics that are constants
    write(Along<A>{rstd.values}, Constant<A>{A(0)}, Constant<A>{A(0)});
  else
    write(Constant<A>{rstd.values != nullptr ? *rstd.values : A(1)},
          Constant<A>{sum.values != nullptr ? *sum.values : A(0)},
          Constant<A>{product.values != nullptr ? *product.values : A(0)});
  tile.commit(grad_x, count);
}

template <class T>
void channel_statistics_of_plane(const T* x, int64_t pixels, int64_t channels,
                                 int64_t channel_stride, bool centred, double divisor, double eps,
                                 accumulate_t<T>* tile, accumulate_t<T>* mean,
                                 accumulate_t<T>* rstd) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  A drift[kTile];  // sum of the deviations: what rounding left in the mean
  A* __restrict centre = mean;
  A* __restrict square = rstd;  // until the end
  A* __restrict rest = drift;
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) centre[i] = square[i] = rest[i] = A(0);
  // Four channels at a time: their rows are fetched together, and the sums are visited less often.
  int64_t first = 0;
  for (; centred && first + 4 <= channels; first += 4) {
    InputTile<T> inputs[4];
    const A* rows[4];
    for (int64_t r = 0; r < 4; ++r) {
      const T* row = x + (first + r) * channel_stride;
      if (first + 4 + r < channels) fetch(row + 4 * channel_stride, pixels);
      rows[r] = inputs[r](row, pixels);
    }
    const A* __restrict a = rows[0], * __restrict b = rows[1];
    const A* __restrict c = rows[2], * __restrict d = rows[3];
    A* __restrict kept = tile + first * pixels;
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) {
      kept[i] = a[i];
      kept[pixels + i] = b[i];
      kept[2 * pixels + i] = c[i];
      kept[3 * pixels + i] = d[i];
      centre[i] += (a[i] + b[i]) + (c[i] + d[i]);
    }
  }
  for (int64_t c = first; c < channels; ++c) {
    const A* __restrict values = input(x + c * channel_stride, pixels);
    A* __restrict kept = tile + c * pixels;
    if (centred) {
#pragma omp simd
      for (int64_t i = 0; i < pixels; ++i) {
        kept[i] = values[i];
        centre[i] += values[i];
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < pixels; ++i) {
        kept[i] = values[i];
        square[i] += values[i] * values[i];
      }
    }
  }
  const A inverse = A(1) / static_cast<A>(channels);
  if (centred) {
#pragma omp simd
    for (int64_t i = 0; i < pixels; ++i) centre[i] *= inverse;
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
      const A* __restrict kept = tile + c * pixels;
#pragma omp simd
      for (int64_t i = 0; i < pixels; ++i) {
        const A m = centre[i], d0 = kept[i] - m, d1 = kept[pixels + i] - m;
        const A d2 = kept[2 * pixels + i] - m, d3 = kept[3 * pixels + i] - m;
        rest[i] += (d0 + d1) + (d2 + d3);
        square[i] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
      }
    }
    for (; c < channels; ++c) {
      const A* __restrict kept = tile + c * pixels;
#pragma omp simd
      for (int64_t i = 0; i < pixels; ++i) {
        const A d = kept[i] - centre[i];
        rest[i] += d;
        square[i] += d * d;
      }
    }
  }
  const A share = static_cast<A>(1.0 / divisor), added = static_cast<A>(eps);
#pragma omp simd
  for (int64_t i = 0; i < pixels; ++i) {
    const A correction = rest[i] * inverse;
    const A exact = square[i] - correction * rest[i];
    square[i] = A(1) / root((exact < A(0) ? A(0) : exact) * share + added);
    centre[i] += correction;
  }
}

template <class T>
void channel_statistics_of_pixel(const T* x, int64_t channels, bool centred, double divisor,
                                 double eps, accumulate_t<T>* mean, accumulate_t<T>* rstd) {
  using A = accumulate_t<T>;
  InputTile<T> input;
  A centre = 0;
  if (centred) {
    for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
      const int64_t width = smaller(kTile, channels - c0);
      centre += row_sum(input(x + c0, width), width);
    }
    centre /= static_cast<A>(channels);
  }
  A drift = 0, square = 0;
  for (int64_t c0 = 0; c0 < channels; c0 += kTile) {
    const int64_t width = smaller(kTile, channels - c0);
    const A* values = input(x + c0, width);
    A s = 0, q = 0;
#pragma omp simd reduction(+ : s, q)
    for (int64_t c = 0; c < width; ++c) {
      const A d = values[c] - centre;
      s += d;
      q += d * d;
    }
    drift += s;
    square += q;
  }
  if (centred) {
    const A correction = drift / static_cast<A>(channels);
    square -= correction * drift;
    centre += correction;
  }
  *mean = centre;
  *rstd = A(1) / root((square < A(0) ? A(0) : square) * static_cast<A>(1.0 / divisor) +
                      static_cast<A>(eps));
}

#define TORCHEXT_INSTANTIATE(T)                                                                   \
  template void modulate_row<T>(const RowInput<T>&, const RowInput<T>&, const RowInput<T>&,       \
                                const Modulation<T>&, int64_t, int64_t, T*);                      \
  template void gradient_row<T>(const T*, const T*, const RowInput<T>&, const RowInput<T>&,       \
                                const RowInput<T>&, const Modulation<T>&, const RowGradients<T>&, \
                                int64_t, accumulate_t<T>*, accumulate_t<T>*);                     \
  template void input_gradient_row<T>(const accumulate_t<T>*, const accumulate_t<T>*,             \
                                      const RowInput<T>&, const RowInput<T>&, const RowInput<T>&, \
                                      int64_t, T*);                                               \
  template void channel_statistics_of_plane<T>(const T*, int64_t, int64_t, int64_t, bool, double, \
                                               double, accumulate_t<T>*, accumulate_t<T>*,        \
                                               accumulate_t<T>*);                                 \
  template void channel_statistics_of_pixel<T>(const T*, int64_t, bool, double, double,           \
                                               accumulate_t<T>*, accumulate_t<T>*);
TORCHEXT_INSTANTIATE(float)
TORCHEXT_INSTANTIATE(double)
TORCHEXT_INSTANTIATE(Half)
TORCHEXT_INSTANTIATE(BFloat16)

}  // namespace TORCHEXT_SIMD
}  // namespace torchext
