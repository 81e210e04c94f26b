"""Set-up that must come before any import of torch or triton."""

import os
import re
import sys
from pathlib import Path

import pytest

# Triton kernels run on CPU tensors; read when a kernel is decorated, so before it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
# `benchmarks` is no part of the installed package.
sys.path.append(str(Path(__file__).parents[1]))


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here, not in golden/, so that a run from the repository's root knows it too.
    parser.addoption(
        "--golden-dir", type=Path, metavar="DIR", help="run the golden files in DIR, not in data/"
    )


# Minutes together, and what they hold is held by faster ones too: left to the full tests.
SLOW = re.compile(
    r"test_published_form\[False-gabor-cuda-emulated"
    r"|test_some_variants_compile_well\[(sm_80|sm_100|gfx942)"
    r"|test_an_access_out_of_bounds_ends_a_sanitized_process"
    r"|test_golden\[michigan-(generator-(pad-label|aspect|train)|pipeline|fill-orient)"
    r"|test_(deepfaceediting|fe_gan|maggan|michigan)_example"
    r"|test_golden\[(semantic|deepfaceediting|mag|mask|michigan|dagan|fe-gan|pd-gan).*-reference"
    r"|test_losses_fall\[(deepfaceediting stage|dagan|fe_gan|michigan|layers|joint)"
    r"|test_losses_of_photographs_fall|test_the_(parser|generator)_learns"
    r"|test_(resume_is_exact|training_after_an_evaluation_in_inference_mode)\[(1-|.* stage)"
    r"|test_two_processes_equal_one_that_accumulates\[(resnet|layers|joint)"
    r"|test_adaptation_matches_the_photo_outside_the_edit\[(None-False|None-True|layers1-True)"
    r"|test_checkpoint_of_another_paper_is_recognised\[-1-"
    r"|test_info_counts_as_published\[deepfaceediting"
    r"|test_other_precisions_and_layouts\[(EditingSimulation|DenseMapping-how1)"
    r"|test_dynamic_sizes_with_a_capacity|test_layers_of_a_block_share_the_windows_of_a_graph"
    r"|test_label_maps_become_photos|test_strokes_change_a_photo"
    r"|test_from_training_to_"
    r"|test_every_edit_of_the_command_line"
    r"|test_a_published_folder_loads_whole"
    r"|test_a_file_of_another_paper_is_named"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases that run under Triton's interpreter, the first of each test is quick."""
    interpreted = set()
    for item in items:
        first = True
        if "triton-interpreted" in item.nodeid:
            test = item.nodeid.partition("[")[0]
            first = test not in interpreted
            interpreted.add(test)
        if not first or SLOW.search(item.nodeid):
            item.add_marker(pytest.mark.slow)
