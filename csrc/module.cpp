// zoo._native: the CPU kernel for numpy arrays, without torch. One thread; the arrays are used in place.
// zoo/numpy.py is the public interface; the checks here keep the kernel from reading or writing outside of an array.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "focal_loss.h"

namespace py = pybind11;

namespace {

void require(bool holds, const std::string& words) {
  if (!holds) throw py::value_error(words);
}

bool is(const py::array& array, zoo::Type type) {  // by value: an unpickled array has its own dtype object
  return array.dtype().equal(py::dtype(type == zoo::Type::f64 ? "d" : type == zoo::Type::f16 ? "e" : "f"));
}

zoo::Type type_of(const py::array& logits) {
  for (const zoo::Type type : {zoo::Type::f32, zoo::Type::f64, zoo::Type::f16})
    if (is(logits, type)) return type;
  throw py::value_error("logits must be float32, float64 or float16");
}

// A call and the arrays that it points to.
struct Call {
  zoo::Problem problem;
  py::array logits, target, weight, grad, p, rows;

  zoo::Type accurate() const { return problem.type == zoo::Type::f64 ? zoo::Type::f64 : zoo::Type::f32; }

  void read_logits(const py::array& given) {
    logits = given;
    problem.type = type_of(given);
    require(given.ndim() == 2 && given.shape(1) > 0, "logits must be (N, C) with C >= 1");
    problem.logits = given.data();
    problem.n = given.shape(0);
    problem.classes = given.shape(1);
    strides(given, "logits", problem.stride_n, problem.stride_c);
  }

  void read_target(const py::array& given) {
    if (given.dtype().kind() != 'f') {
      target = py::array_t<int64_t, py::array::c_style>::ensure(given);
      require(bool(target), "target must be int64 labels, or shares of the type of logits");
      require(target.ndim() == 1 && target.shape(0) == problem.n, "target of labels must be (N,)");
      problem.target = target.data();
      return;
    }
    target = given;
    require(given.ndim() == 2 && given.shape(0) == problem.n && given.shape(1) == problem.classes, "target of shares must be (N, C)");
    problem.shares_type = is(given, accurate()) ? accurate() : problem.type;
    require(is(given, problem.shares_type), "shares must be of the type of logits");
    problem.shares = given.data();
    strides(given, "shares", problem.shares_n, problem.shares_c);
  }

  // A C-contiguous array or None, kept in `to`; whether it is given.
  bool dense(const py::object& given, py::array& to, zoo::Type type, py::ssize_t n, const char* words) {
    if (given.is_none()) return false;
    to = py::cast<py::array>(given);
    require(is(to, type) && to.ndim() == 1 && to.shape(0) == n && (to.flags() & py::array::c_style), words);
    return true;
  }

  void read_outputs(const py::object& gradient, const py::object& p_t, const py::object& loss_rows) {
    if (!gradient.is_none()) {
      grad = py::cast<py::array>(gradient);
      require(is(grad, problem.type) && grad.ndim() == 2 && grad.shape(0) == problem.n && grad.shape(1) == problem.classes &&
                  (grad.flags() & py::array::c_style),
              "grad must be (N, C), contiguous and of the type of logits");
      problem.grad = grad.mutable_data();
      problem.grad_n = problem.classes;
    }
    if (dense(p_t, p, accurate(), problem.n, "p must be (N,), contiguous and of the type of the loss"))
      problem.p_rows = p.mutable_data();
    if (dense(loss_rows, rows, accurate(), problem.n, "rows must be (N,), contiguous and of the type of the loss"))
      problem.loss_rows = rows.mutable_data();
  }

  static void strides(const py::array& array, const char* name, int64_t& first, int64_t& second) {
    const auto item = array.itemsize();
    require(array.strides(0) % item == 0 && array.strides(1) % item == 0, std::string(name) + " must have strides of whole elements");
    first = array.strides(0) / item;
    second = array.strides(1) / item;
  }
};

zoo::Reduction reduction_of(const std::string& name) {
  if (name == "none") return zoo::Reduction::none;
  if (name == "mean") return zoo::Reduction::mean;
  if (name == "sum") return zoo::Reduction::sum;
  require(name == "weighted_mean", "reduction must be none, mean, sum or weighted_mean");
  return zoo::Reduction::weighted_mean;
}

// (loss, mean modulating factor) of logits (N, C); gradient, p_t and the loss of each row are written to the given arrays.
py::tuple focal_loss(const py::array& logits, const py::array& target, double gamma, const py::object& weight,
                     int64_t ignore_index, double label_smoothing, const std::string& reduction, double scale,
                     const py::object& grad, const py::object& p, const py::object& rows) {
  Call call;
  call.read_logits(logits);
  call.read_target(target);
  require(gamma >= 0, "gamma must be >= 0");
  require(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1]");
  zoo::Problem& problem = call.problem;
  problem.gamma = gamma;
  problem.smoothing = label_smoothing;
  problem.scale = scale;
  problem.ignore_index = ignore_index;
  problem.reduction = reduction_of(reduction);
  require(problem.reduction != zoo::Reduction::none || !rows.is_none(), "reduction none needs rows for the losses");
  const char* about_weight = "weight must be (C,), contiguous and of the type of the loss";
  if (call.dense(weight, call.weight, call.accurate(), problem.classes, about_weight)) problem.weight = call.weight.data();
  call.read_outputs(grad, p, rows);
  zoo::Result result;
  {
    const py::gil_scoped_release release;
    result = zoo::focal_loss(problem, nullptr);
  }
  if (result.bad_row >= 0)
    throw py::index_error("target[" + std::to_string(result.bad_row) + "]=" + std::to_string(result.bad_label) +
                          " is out of range for " + std::to_string(problem.classes) + " classes");
  return py::make_tuple(result.loss, result.factor);
}

std::string capability(const py::object& name) {
  if (!name.is_none() && !zoo::set_capability(py::cast<std::string>(name).c_str()))
    throw py::value_error("this CPU or build has no " + py::cast<std::string>(name));
  return zoo::capability();
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "zoo's CPU kernels for numpy arrays; no torch.";
  m.def("focal_loss", &focal_loss, py::arg("logits"), py::arg("target"), py::kw_only(), py::arg("gamma") = 2.0,
        py::arg("weight") = py::none(), py::arg("ignore_index") = -100, py::arg("label_smoothing") = 0.0,
        py::arg("reduction") = "mean", py::arg("scale") = 1.0, py::arg("grad") = py::none(), py::arg("p") = py::none(),
        py::arg("rows") = py::none(),
        "(loss, mean of (1 - p_t)^gamma) of logits (N, C) float32, float64 or float16 and target (N,) int64 or shares (N, C) of the "
        "logits' type. The gradient is written into grad (N, C), p_t into p (N,) and the rows' losses into rows (N,) where given. "
        "IndexError for a label out of range, ValueError for other bad arguments.");
  m.def("capability", &capability, py::arg("name") = py::none(), "The instruction set in use, after choosing name.");
  m.attr("compiler") = __VERSION__;
}
