"""What is wrong with a setting, in one line."""

from difflib import get_close_matches

from pydantic import ValidationError

from foveal.config.settings import Recipe, Rule, setting_names


def explain(error: ValidationError) -> tuple[list[str], str]:
    """Name the setting that is wrong, and say what is wrong with it."""
    # Of a setting with several forms, the form that was understood furthest.
    problem = max(
        error.errors(include_url=False),
        key=lambda one: (len(one["loc"]), one["type"] == "extra_forbidden"),
    )
    names = [str(name) for name in problem["loc"] if "[" not in str(name)]  # without the form's own
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        while isinstance(given, dict) and given:
            name, given = next(iter(given.items()))
            names.append(str(name))
        return names, f"unknown setting {'.'.join(names)}{_nearest(names)}"
    where = ".".join(names)
    if problem["type"] == "missing":
        how = f"add it to the recipe or give {where}=... on the command line"
        return names, f"{where} is missing; {how}"
    shown = " ".join(str(given).split())
    return names, f"{where}={shown}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(names: list[str]) -> str:
    name = ".".join(names)
    in_rule = ".".join(names[:2]) + "."
    known = setting_names(Rule, in_rule) if names[0] == "strategy" else setting_names(Recipe)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
