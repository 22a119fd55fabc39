// Every op's schema. Shapes and meaning are in the docstrings of pysel/ops; tau is a Tensor so that annealing it
// neither recompiles a graph nor is baked into one.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pysel, m) {
  // the library itself
  m.def("build_info() -> str[]");
  m.def("wait_and_raise() -> ()");

  // random streams
  m.def("random_words(Tensor key, int stream, int start, int n) -> Tensor");
  m.def("words64(Tensor key, int stream, Tensor items) -> Tensor");
  m.def("noise(Tensor bits, str kind, bool double_precision) -> Tensor");
  m.def("split(Tensor key, int n) -> Tensor");
  m.def("fold_in(Tensor key, int data) -> Tensor");
  m.def("permutation(SymInt n, Tensor key, SymInt start, SymInt stop) -> Tensor");

  // gumbel
  m.def(
      "gumbel_softmax(Tensor logits, Tensor tau, Tensor key, int dim, bool hard, int start, bool? validate) -> Tensor");
  m.def(
      "gumbel_softmax.out(Tensor logits, Tensor tau, Tensor key, int dim, bool hard, int start, bool? validate, *, "
      "Tensor(a!) out) -> ()");
  m.def("gumbel_softmax_backward(Tensor grad, Tensor y, Tensor tau, int dim) -> Tensor");
  m.def("gumbel_sigmoid(Tensor logits, Tensor tau, Tensor key, bool hard, int start, bool? validate) -> Tensor");
  m.def(
      "gumbel_sigmoid.out(Tensor logits, Tensor tau, Tensor key, bool hard, int start, bool? validate, *, "
      "Tensor(a!) out) -> ()");
  m.def("gumbel_sigmoid_backward(Tensor grad, Tensor logits, Tensor tau, Tensor key, int start) -> Tensor");
  m.def("gumbel_argmax(Tensor logits, Tensor key, int dim, int start, bool? validate) -> Tensor");

  // topk
  m.def("topk(Tensor x, int k) -> (Tensor, Tensor)");
  m.def("topk_encode(Tensor x, Tensor weight, Tensor? bias, int k, str activation) -> (Tensor, Tensor)");
  m.def("sparse_decode(Tensor values, Tensor indices, Tensor weight, Tensor? bias) -> Tensor");
  m.def("sparse_decode.out(Tensor values, Tensor indices, Tensor weight, Tensor? bias, *, Tensor(a!) out) -> ()");
  m.def("sddmm(Tensor indices, Tensor weight, Tensor grad) -> Tensor");
  m.def("spmm_t(Tensor values, Tensor indices, Tensor rows, int num_factors) -> Tensor");
  m.def("sparse_decode_backward(Tensor grad, Tensor values, Tensor indices, Tensor weight) -> (Tensor, Tensor)");
  m.def("factor_counts(Tensor values, Tensor indices, int num_factors, Tensor? groups, int? num_groups) -> Tensor");
  m.def("factor_scores(Tensor values, Tensor indices, Tensor tables, str reduce, bool weighted) -> Tensor");

  // select
  m.def(
      "select(Tensor scores, int k, bool largest, Tensor? groups=None, Tensor? quotas=None, Tensor? key=None, bool? "
      "validate=None, int start=0) -> Tensor");
  m.def(
      "select.out(Tensor scores, int k, bool largest, Tensor? groups=None, Tensor? quotas=None, Tensor? key=None, "
      "bool? validate=None, int start=0, *, Tensor(a!) out) -> ()");

  // usage
  m.def("usage_update_(Tensor(a!) counts, Tensor selected, float decay) -> ()");
  m.def("usage_penalty(Tensor scores, Tensor counts, float gamma, str form, int step) -> Tensor");
  m.def("usage_penalty.out(Tensor scores, Tensor counts, float gamma, str form, int step, *, Tensor(a!) out) -> ()");
  m.def(
      "usage_step_(Tensor(a!) counts, Tensor selected, Tensor scores, float gamma, float decay, str form, int step) "
      "-> Tensor");
  m.def(
      "usage_step_.out(Tensor(a!) counts, Tensor selected, Tensor scores, float gamma, float decay, str form, int "
      "step, *, Tensor(b!) out) -> ()");
  m.def(
      "usage_select_(Tensor(a!) counts, Tensor first, Tensor second, float mix, float gamma, str form, int step, int "
      "k, Tensor? groups, Tensor? quotas, Tensor? key, bool? validate) -> Tensor");

  // sample; the first three for shards of one vector of weights
  m.def("race_keys(Tensor weights, bool log_weights, Tensor key, int start) -> Tensor");
  m.def("draw_targets(Tensor key, int start, int k, int total) -> Tensor");
  m.def("fixed_weights(Tensor weights, bool log_weights, float max, int n) -> Tensor");
  m.def(
      "weighted_sample(Tensor weights, int k, bool replacement, bool log_weights, str order, Tensor? groups, Tensor? "
      "quotas, Tensor key, int start, bool? validate) -> Tensor");
  m.def(
      "weighted_sample.out(Tensor weights, int k, bool replacement, bool log_weights, str order, Tensor? groups, "
      "Tensor? quotas, Tensor key, int start, bool? validate, *, Tensor(a!) out) -> ()");

  // prepared; weights, sums and largest as in common/prepared.h
  m.def("prepare(Tensor weights) -> (Tensor, Tensor)");
  m.def("update_prepared_(Tensor(a!) weights, Tensor(b!) sums, Tensor(c!) largest, Tensor index, Tensor weight) -> ()");
  m.def(
      "sample_prepared(Tensor weights, Tensor sums, Tensor largest, int k, str order, Tensor key, int start) -> "
      "Tensor");
}
