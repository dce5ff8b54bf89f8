"""What a person can do with a run next."""

from pathlib import Path


def next_commands(folder: Path) -> list[str]:
    """Lines to print: a heading, then a command each with what it is for."""
    rows = (
        (f"jaxllm journal {folder}", "what happened to this run"),
        (f"jaxllm verify {folder}", "holds it against its own record"),
        (f'jaxllm sample {folder} --prompt "Return the"', "more text from any checkpoint"),
        (f"jaxllm data step {folder} 1 --decode", "what step 1 saw"),
        (f"jaxllm train {folder}", "resumes a run that was stopped or killed; says so if it is finished"),
        (f"tensorboard --logdir {folder}/tensorboard", "curves"),
    )
    width = max(len(command) for command, _ in rows)
    heading = f"the run lies in {folder}; next (in .venv/bin, if bash launch/local.sh made it):"
    return [heading, *(f"  {command:<{width}}   {why}" for command, why in rows)]
