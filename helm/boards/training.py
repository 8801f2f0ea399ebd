"""A training run on Ray."""

from __future__ import annotations

from helm.boards.panels import Panel, Query, Rows, quantiles, rate


def rows() -> Rows:
    """Rows of panels."""
    by_recipe = "{{recipe}}"
    counted = [
        ("Text tokens", "Tokens trained on, a second, over all workers.", "streamchat_train_tokens_total"),
        ("Frames", "Video frames trained on, a second, over all workers.", "streamchat_train_frames_total"),
    ]
    return [
        (
            "Learning",
            [
                Panel(
                    title="Loss",
                    about="Of the last step, mean over workers, and of the validation rows.",
                    unit="short",
                    queries=[
                        Query("avg by (recipe) (streamchat_train_loss{$ns})", by_recipe),
                        Query(
                            "max by (recipe) (streamchat_train_validation_loss{$ns})", "validation {{recipe}}"
                        ),
                    ],
                    warn=5,
                    bad=20,
                ),
                Panel(
                    title="Right tokens",
                    about="Share of tokens that the model ranked first, in the last step and in the validation rows.",
                    unit="percentunit",
                    queries=[
                        Query("avg by (recipe) (streamchat_train_right_ratio{$ns})", by_recipe),
                        Query(
                            "max by (recipe) (streamchat_train_validation_right_ratio{$ns})",
                            "validation {{recipe}}",
                        ),
                    ],
                    warn=0.8,
                    bad=0.3,
                    falling=True,
                ),
                level(
                    "Gradient",
                    "Length of the gradient before it was cut; leaps come before a loss that explodes.",
                    "streamchat_train_gradient_norm",
                    10,
                    100,
                ),
                level("Learning rate", "Of the last step.", "streamchat_train_learning_rate", 0.01, 0.1),
                Panel(
                    title="Progress",
                    about="The share of the run that is done.",
                    unit="percentunit",
                    queries=[Query("max by (recipe) (streamchat_train_done_ratio{$ns})", by_recipe)],
                    warn=1,
                    bad=0.01,
                    falling=True,
                ),
                Panel(
                    title="Checkpoints",
                    about="Written so far.",
                    unit="short",
                    queries=[Query("sum by (recipe) (streamchat_train_checkpoints_total{$ns})", by_recipe)],
                    warn=1,
                    bad=1,
                    falling=True,
                ),
            ],
        ),
        (
            "Speed",
            [
                Panel(
                    title="Step",
                    about="One optimiser step.",
                    unit="s",
                    queries=quantiles("streamchat_train_step_seconds", window="5m"),
                    warn=30,
                    bad=120,
                ),
                *(
                    Panel(
                        title=title,
                        about=about,
                        unit="cps",
                        queries=[Query(rate(name, "recipe", "5m"), by_recipe)],
                        warn=10,
                        bad=1,
                        falling=True,
                    )
                    for title, about, name in counted
                ),
                Panel(
                    title="Waiting for data",
                    about="Share of the time that the slowest worker waits for data. Above 0.1: too few readers.",
                    unit="percentunit",
                    queries=[
                        Query(
                            "max by (recipe) (rate(streamchat_train_data_wait_seconds_total{$ns}[5m]))",
                            by_recipe,
                        )
                    ],
                    warn=0.1,
                    bad=0.3,
                ),
                Panel(
                    title="Memory",
                    about="In use on the fullest worker's device.",
                    unit="bytes",
                    queries=[Query("max by (recipe) (streamchat_train_memory_bytes{$ns})", by_recipe)],
                    warn=40e9,
                    bad=70e9,
                ),
                Panel(
                    title="Skipped",
                    about="Bad rows of data, and steps without a finite loss and gradient, left out so far.",
                    unit="short",
                    queries=[
                        Query(
                            "sum by (recipe) (streamchat_train_rows_skipped_total{$ns})", "rows {{recipe}}"
                        ),
                        Query(
                            "sum by (recipe) (streamchat_train_steps_skipped_total{$ns})", "steps {{recipe}}"
                        ),
                    ],
                    warn=1,
                    bad=100,
                ),
            ],
        ),
    ]


def level(title: str, about: str, gauge: str, warn: float, bad: float) -> Panel:
    """A gauge of a training run, its mean over the workers."""
    queries = [Query(f"avg by (recipe) ({gauge}{{$ns}})", "{{recipe}}")]
    return Panel(title=title, about=about, unit="short", queries=queries, warn=warn, bad=bad)
