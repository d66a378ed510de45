"""The equalities that are tested, for the page "Why you can trust it": each with its test and the test's tolerance.

Tolerances are read from the tests' source, so the page cannot differ from them. `test_trust.py` holds the table, and
`python -m tests.trust` prints it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_DEFAULT = "torch's default for the dtype"  # assert_close: rtol 1.3e-6 and atol 1e-5 in float32, 1e-7 in float64


class Claim(NamedTuple):
    """One equality.

    Attributes:
        what: The equality, in one sentence.
        node: The test, `FILE::FUNCTION`.
        exact: Whether the test demands equal bits; otherwise its source has a tolerance.
        checked_in: `FILE::FUNCTION` that the test runs and that compares; "" if the test compares itself.
    """

    what: str
    node: str
    exact: bool = False
    checked_in: str = ""

    def tolerances(self) -> list[str]:
        """The tolerances that the test's source gives, "exact" if there are none."""
        file, _, name = (self.checked_in or self.node).partition("::")
        return list(dict.fromkeys(_tolerances(file, name))) or ["exact"]

    def command(self) -> str:
        """The command that runs the test."""
        return f"python -m pytest {self.node}"


_T, _P, _S, _F = "tests/fastmoco/", "tests/pipelines/", "tests/shards/", "tests/fastmoco/scripts/"
CLAIMS: dict[str, list[Claim]] = {
    "Loss and training step": [
        Claim(
            "Twenty steps of MoCo, end-to-end and memory bank equal the papers' pseudo-code, in float32.",
            _T + "test_papers.py::test_twenty_steps_of_each_mechanism_equal_the_papers_pseudo_code",
            checked_in=_F + "papers.py::near",
        ),
        Claim(
            "The same on several ranks.",
            _T + "test_papers.py::test_twenty_steps_on_several_ranks_equal_the_papers_pseudo_code",
            checked_in=_F + "papers.py::near",
        ),
        Claim(
            "Twenty steps of MoCo v3, by LARS and AdamW, in one or more micro-batches, equal the paper's pseudo-code.",
            _T + "test_v3.py::test_twenty_steps_equal_the_papers_pseudo_code",
            checked_in=_F + "v3.py::near",
        ),
        Claim(
            "The same on several ranks.",
            _T + "test_v3.py::test_twenty_steps_on_several_ranks_equal_the_papers_pseudo_code",
            checked_in=_F + "v3.py::near",
        ),
        Claim(
            "Steps of LARS and AdamW equal written-out ones, where gradients overflow too.",
            _T + "test_v3.py::test_steps_of_an_optimiser_equal_a_written_out_one",
        ),
        Claim(
            "Six steps in float64: losses, queue and all weights of both encoders equal the pseudo-code's.",
            _T + "test_moco.py::test_six_steps_equal_the_papers_pseudo_code",
        ),
        Claim(
            "The loss that keeps no logits, and its gradients, equal the reference in plain torch, for any shape.",
            _T + "test_infonce.py::test_equals_reference",
        ),
        Claim(
            "The Triton kernels of loss and queue equal the reference, under Triton's interpreter.",
            _T + "test_triton.py::test_kernels_under_the_interpreter",
            checked_in=_F + "triton_checks.py::check",
        ),
        Claim(
            "Split BatchNorm equals separate BatchNorms of as many devices.",
            _T + "test_moco.py::test_split_batchnorm_equals_separate_batchnorms",
        ),
    ],
    "Queue": [
        Claim(
            "The queue equals a ring that is written one key after another, for any length and batch size.",
            _T + "test_queue.py::test_ring_equals_writing_one_key_after_another",
        ),
        Claim(
            "All ranks hold the same queue.",
            _T + "test_train.py::test_two_ranks_hold_one_queue_and_divide_the_samples",
            exact=True,
        ),
    ],
    "Order": [
        Claim(
            "In an epoch no image comes twice, and at most one incomplete batch is left over.",
            _P + "test_order.py::test_no_id_comes_twice_and_only_the_remainder_is_left_over",
            exact=True,
        ),
        Claim(
            "A global batch holds the same images for any number of ranks.",
            _P + "test_order.py::test_the_global_batch_does_not_depend_on_the_world_size",
            exact=True,
        ),
        Claim(
            "The order by shards: no image comes twice on any number of ranks, and all ranks have equal steps.",
            _P + "test_sharded.py::test_no_id_comes_twice_on_any_number_of_ranks_and_all_have_the_same_batches",
            exact=True,
        ),
    ],
    "Resume": [
        Claim(
            "A run that is killed and started again ends with the losses and tensors of one that was not.",
            _T + "test_train.py::test_a_killed_run_continues_bit_for_bit",
            exact=True,
        ),
        Claim("The same on several ranks.", _T + "test_train.py::test_killed_ranks_continue_bit_for_bit", exact=True),
        Claim(
            "The same on streamed tars.",
            _T + "test_stream.py::test_a_killed_run_on_a_stream_continues_bit_for_bit",
            True,
        ),
        Claim(
            "A linear probe that is cut off continues to the same classifiers.",
            _T + "test_linear.py::test_a_probe_that_was_cut_off_continues_bit_for_bit",
            exact=True,
        ),
        Claim(
            "A fine-tuning that is cut off continues to the same weights.",
            _T + "test_finetune.py::test_a_training_that_was_cut_off_continues_bit_for_bit",
            exact=True,
        ),
        Claim(
            "A transfer to detection that is killed continues to the same model.",
            _T + "detection/test_transfer.py::test_a_killed_transfer_continues_bit_for_bit",
            exact=True,
        ),
        Claim(
            "A set in a bucket gives the losses of the same set in a folder.",
            _T + "test_remote_training.py::test_a_set_in_a_bucket_trains_like_one_in_a_folder",
            exact=True,
        ),
    ],
    "Views": [
        Claim(
            "The compiled loops over pixels equal their definition in plain NumPy.",
            _P + "test_kernels.py::test_views_are_the_references_bit_for_bit",
            exact=True,
        ),
        Claim(
            "A view is torchvision's crop, resize, blur and flip, in levels of 255.",
            _P + "test_views.py::test_a_view_is_torchvisions_crop_resize_blur_and_flip",
        ),
        Claim(
            "DALI's CPU backend makes the same views, in levels of 255: inside, at the edge, and on average.",
            _P + "test_views.py::test_dali_makes_the_same_views",
        ),
        Claim(
            "Colour operations equal torchvision's in every order, in levels of 255.",
            _P + "test_colour.py::test_operations_compose_to_torchvisions_in_every_order",
        ),
    ],
    "Packing": [
        Claim(
            "A packing that is killed and started again gives the same bytes.",
            _S + "test_pack.py::test_killed_at_any_moment_the_rerun_gives_the_same_bytes",
            exact=True,
        ),
        Claim(
            "The same, stopped before each of its writes in turn.",
            _S + "test_interruptions.py::test_killed_before_every_step_on_the_disk_the_set_is_the_same",
            exact=True,
        ),
        Claim(
            "Ray packs the same bytes as one process.",
            _S + "test_executors.py::test_ray_packs_the_same_bytes_from_another_working_folder",
            exact=True,
        ),
    ],
    "Evaluation and exports": [
        Claim("kNN equals its definition, vote by vote.", _T + "test_knn.py::test_equals_its_definition"),
        Claim(
            "Detection's average precision is pycocotools' on the same detections.",
            _T + "detection/test_transfer.py::test_the_metrics_are_pycocotools_on_the_same_detections",
        ),
        Claim(
            "torchvision loads an export strictly and gives the same features.",
            _T + "test_export.py::test_torchvision_loads_it_strictly_and_gives_the_same_features",
        ),
        Claim(
            "timm loads an export strictly and gives the same features.",
            _T + "test_export.py::test_timm_loads_it_strictly_and_gives_the_same_features",
        ),
        Claim(
            "An original-MoCo checkpoint that is imported and exported has all of its tensors unchanged.",
            _T + "test_export.py::test_the_originals_layout_imports_exports_and_imports_again_unchanged",
        ),
    ],
}


def as_markdown() -> str:
    """The tables of the page."""
    parts = []
    for title, claims in CLAIMS.items():
        rows = [f"| {c.what} | {', '.join(c.tolerances())} | `{c.node}` |" for c in claims]
        parts += [f"## {title}", "\n".join(["| equality | tolerance | test |", "| --- | --- | --- |", *rows])]
    return "\n\n".join(parts)


def function(file: str, name: str) -> ast.FunctionDef | None:
    """A function of a file, None if there is none of that name."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _tolerances(file: str, name: str) -> Iterator[str]:
    """Of a function and the functions of its file that it calls."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    constants = dict(pair for node in tree.body if isinstance(node, ast.Assign) for pair in _assigned(node))
    calls = [node.func for node in ast.walk(functions[name]) if isinstance(node, ast.Call)]
    called = {call.id for call in calls if isinstance(call, ast.Name)}
    for part in (functions[name], *(functions[other] for other in sorted(called & functions.keys()))):
        for node in ast.walk(part):
            yield from _of_node(node, constants)


def _assigned(node: ast.Assign) -> Iterator[tuple[str, str]]:
    names, values = node.targets[0], node.value
    if isinstance(names, ast.Tuple) and isinstance(values, ast.Tuple):
        yield from zip(map(ast.unparse, names.elts), map(ast.unparse, values.elts), strict=True)
    else:
        yield ast.unparse(names), ast.unparse(values)


def _of_node(node: ast.AST, constants: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Call):
        given = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in ("atol", "rtol", "rel", "abs")}
        names = {"rel": "rtol", "abs": "atol"}
        for key, value in given.items():
            if value not in ("0", "0.0"):
                yield f"{names.get(key, key)} {_resolved(value, constants)}"
        called = ast.unparse(node.func)
        if not given and called in ("torch.testing.assert_close", "assert_close"):
            yield _DEFAULT
        if not given and called == "pytest.approx":
            yield "rtol 1e-06"
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.LtE):
        left, bound = ast.unparse(node.left), ast.unparse(node.comparators[0])
        if any(word in left for word in ("difference", "abs()", "worst")):
            yield f"{'<' if isinstance(node.ops[0], ast.Lt) else '≤'} {_resolved(bound, constants)}"


def _resolved(value: str, constants: dict[str, str]) -> str:
    """A tolerance with the values of constants instead of their names."""
    names = {node.id for node in ast.walk(ast.parse(value)) if isinstance(node, ast.Name)}
    for name in names & constants.keys():
        value = value.replace(name, constants[name])
    return value if names <= constants.keys() else "computed in the test"


if __name__ == "__main__":
    print(as_markdown())
