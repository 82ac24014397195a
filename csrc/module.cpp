// zoo._native: the CPU kernel for numpy arrays, without torch. One thread; the arrays are used in place.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "focal_loss.h"

namespace py = pybind11;

namespace {

void require(bool holds, const std::string& words) {
  if (!holds) throw py::value_error(words);
}

// (loss, mean modulating factor) of logits (N, C); writes the gradient to `grad` and p_t to `p` if they are given.
py::tuple focal_loss(const py::array& logits, const py::array_t<int64_t, py::array::c_style>& target, double gamma,
                     const py::object& weight, int64_t ignore_index, double label_smoothing, const std::string& reduction,
                     double scale, const py::object& grad, const py::object& p) {
  const bool deep = logits.dtype().is(py::dtype::of<double>());
  require(deep || logits.dtype().is(py::dtype::of<float>()), "logits must be float32 or float64");
  require(logits.ndim() == 2 && logits.shape(1) > 0, "logits must be (N, C) with C >= 1");
  require(target.ndim() == 1 && target.shape(0) == logits.shape(0), "target must be (N,)");
  require(gamma >= 0, "gamma must be >= 0");
  require(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1]");
  const bool mean = reduction == "mean";
  require(mean || reduction == "sum" || reduction == "weighted_mean", "reduction must be mean, sum or weighted_mean");
  const auto item = logits.dtype().itemsize();
  const auto dense = [&](const py::object& given, const char* name, int dims, py::ssize_t n) {
    const py::array array = py::cast<py::array>(given);
    require(array.dtype().is(logits.dtype()) && array.ndim() == dims && array.shape(0) == n && (array.flags() & py::array::c_style),
            std::string(name) + " must be contiguous, of the type of logits and of its shape");
    return array;
  };

  zoo::Problem problem;
  problem.logits = logits.data();
  problem.type = deep ? zoo::Type::f64 : zoo::Type::f32;
  problem.n = logits.shape(0);
  problem.classes = logits.shape(1);
  require(logits.strides(0) % item == 0 && logits.strides(1) % item == 0, "logits must have strides of whole elements");
  problem.stride_n = logits.strides(0) / item;
  problem.stride_c = logits.strides(1) / item;
  problem.target = target.data();
  problem.gamma = gamma;
  problem.smoothing = label_smoothing;
  problem.scale = scale;
  problem.ignore_index = ignore_index;
  problem.reduction = mean ? zoo::Reduction::mean : reduction == "sum" ? zoo::Reduction::sum : zoo::Reduction::weighted_mean;
  py::array weights, gradient, rows;  // keep what the pointers point to
  if (!weight.is_none()) {
    weights = dense(weight, "weight", 1, problem.classes);
    problem.weight = weights.data();
  }
  if (!grad.is_none()) {
    gradient = dense(grad, "grad", 2, problem.n);
    require(gradient.shape(1) == problem.classes, "grad must be (N, C)");
    problem.grad = gradient.mutable_data();
    problem.grad_n = problem.classes;
  }
  if (!p.is_none()) {
    rows = dense(p, "p", 1, problem.n);
    problem.p_rows = rows.mutable_data();
  }
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
        "(loss, mean of (1 - p_t)^gamma) of logits (N, C) float32 or float64 and target (N,) int64. The gradient is written into "
        "grad (N, C) and p_t into p (N,) where given. IndexError for a label out of range, ValueError for other bad arguments.");
  m.def("capability", &capability, py::arg("name") = py::none(), "The instruction set in use, after choosing name.");
  m.attr("compiler") = __VERSION__;
}
