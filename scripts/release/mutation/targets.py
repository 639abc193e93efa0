"""The modules that are changed, each with its nearest tests, the fastest first."""

METHODS = "tests/runtime/methods/"
HTTP = "tests/runtime/serving/http/"
TENSORRT = "tests/engines/tensorrt/"
TRITON = "tests/runtime/serving/triton/test_backend_models.py"
BUNDLE = ("tests/engines/bundle",)
CUT = (f"{METHODS}test_cut.py", f"{METHODS}test_cut_attention.py", f"{METHODS}test_golden_diffcut.py")
MERGE = (f"{METHODS}test_numerics.py", f"{METHODS}test_golden.py", f"{METHODS}test_devices.py")
PLANS = (f"{TENSORRT}test_plans.py", f"{TENSORRT}test_execute.py", f"{TENSORRT}test_build.py")

TARGETS: dict[str, tuple[str, ...]] = {
    "runtime/methods/aggregate.py": MERGE,
    "runtime/methods/assign.py": CUT,
    "runtime/methods/colour.py": (f"{METHODS}test_colour.py", f"{METHODS}test_numerics.py"),
    "runtime/methods/cut.py": CUT,
    "runtime/methods/cut_attention.py": CUT,
    "runtime/methods/eigenvector.py": CUT,
    "runtime/methods/kmeans.py": MERGE,
    "runtime/methods/merge.py": ("tests/runtime/test_cancellation.py", *MERGE),
    "runtime/methods/pamr.py": (f"{METHODS}test_pamr.py", f"{METHODS}test_golden_diffcut.py"),
    "runtime/methods/suppress.py": MERGE,
    "engines/bundle/bundle.py": BUNDLE,
    "engines/bundle/external_data.py": BUNDLE,
    "engines/bundle/manifest.py": BUNDLE,
    "engines/bundle/settings.py": (*BUNDLE, f"{HTTP}test_segment.py", f"{HTTP}test_kserve.py"),
    "engines/tensorrt/lookup.py": PLANS,
    "engines/tensorrt/plan.py": PLANS,
    "engines/tensorrt/precision.py": (f"{TENSORRT}test_precision.py", f"{TENSORRT}test_configure.py"),
    "runtime/serving/protocol/image_structure.py": ("tests/hostile/test_images.py", f"{HTTP}test_hostile.py"),
    "runtime/serving/protocol/masking.py": ("tests/runtime/serving/test_masking.py", TRITON),
    "runtime/serving/protocol/untrusted.py": (f"{HTTP}test_hostile.py", f"{HTTP}test_load.py"),
    "runtime/serving/http/access.py": (f"{HTTP}test_access.py",),
    "runtime/serving/http/limits.py": (f"{HTTP}test_limits.py", f"{HTTP}test_load.py", f"{HTTP}test_hostile.py"),
    "runtime/serving/http/batcher.py": (f"{HTTP}test_load.py", f"{HTTP}test_hostile.py", f"{HTTP}test_warm.py"),
    "runtime/serving/http/job.py": (f"{HTTP}test_load.py", f"{HTTP}test_hostile.py"),
}
