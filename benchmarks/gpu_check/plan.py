"""The checks of ``make gpu-check``: groups whose checks share a process."""

from benchmarks.gpu_check.check import Check

HERE = "benchmarks.gpu_check"
FORMATS = "trains in float32, bfloat16 and float16, and predicts in each what it does on the CPU"
OTHER_FORMAT = "Set precision to a format that agrees, such as -p recipe precision=float32."
ONE_PROCESS = "Use the default: a fold per GPU (num_processes=1)."
SPEED = "trains at full size; it only measures"
MEASURE = "Try `make bench`, which measures smaller networks and images."

PLAN = (
    (
        Check(
            "device",
            "an NVIDIA GPU is there, and this torch computes on it",
            f"{HERE}.device:find_gpu",
            "Update the driver, or install a torch that supports this GPU. On Kaggle, choose 'GPU T4 x2'.",
        ),
        *(
            Check(f"formats-{name}", f"`{name}` {FORMATS}", f"{HERE}.formats:train_and_predict", OTHER_FORMAT, name)
            for name in ("cnn", "resnet50", "rnn", "efficientnet_b0", "maxvit_nano_rw_256")
        ),
        Check(
            "channels-last",
            "weights and maps of resnet50 stay in the memory layout that matrix units need",
            f"{HERE}.formats:keep_channels_last",
            "Training works, but slower than it could: please report the modules that are listed.",
        ),
    ),
    (
        Check(
            "grad-scaler",
            "in float16, a step with an infinite gradient changes no weight and halves the scale",
            f"{HERE}.steps:skip_infinite_gradients",
            "Set precision=bfloat16 or precision=float32.",
        ),
        Check(
            "out-of-memory",
            "if memory runs out, a step is computed in halves, with the gradients of that micro_batch_size",
            f"{HERE}.steps:halve_within_memory",
            "Set micro_batch_size to half of batch_size or less from the start.",
        ),
        Check(
            "checkpointing",
            "activation_checkpointing gives the same gradients with less memory",
            f"{HERE}.steps:checkpoint_activations",
            "Leave activation_checkpointing off, and set micro_batch_size if memory runs out.",
        ),
        Check(
            "deterministic",
            "with deterministic=true, two trainings give the same weights, bit by bit",
            f"{HERE}.steps:repeat_training",
            "Expect small differences between two runs with the same seed.",
        ),
        Check(
            "two-processes",
            "two processes that share each step have the loss curve of one",
            f"{HERE}.processes:share_steps",
            ONE_PROCESS,
            limit_s=150,
        ),
        Check(
            "side-by-side",
            "two folds at once give the predictions of one after the other",
            f"{HERE}.processes:train_folds_side_by_side",
            "Set parallel_folds=1.",
        ),
        Check(
            "killed-run",
            "a killed run resumes, and ends with the weights of an uninterrupted one",
            f"{HERE}.processes:resume_killed_run",
            "Delete the fold's folder after an interruption.",
        ),
        Check(
            "submit-overlap",
            "while a patient is predicted, the next one is decoded",
            f"{HERE}.submission:overlap_decoding",
            "Submissions are right, but slower than planned: please report the shares.",
        ),
        Check(
            "half-and-onnx",
            "half precision here and ONNX on the CPU agree with float32",
            f"{HERE}.submission:compare_forms",
            "`submit` compares them by itself, and takes only those that agree.",
        ),
    ),
    (
        Check("speed-resnet50", SPEED, f"{HERE}.speed:measure_case", MEASURE, "resnet50", 150),
        Check("speed-convnext_small", SPEED, f"{HERE}.speed:measure_case", MEASURE, "convnext_small", 150),
    ),
)
