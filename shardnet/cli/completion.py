"""Print the completion script of a shell.

Usage:
  shardnet completion SHELL

SHELL is bash, zsh or fish. An installed shardnet brings all three; for a checkout:

  bash  source <(shardnet completion bash)
  zsh   shardnet completion zsh > ~/.zfunc/_shardnet      (a directory of fpath)
  fish  shardnet completion fish | source

The scripts are made from the usage texts. Names of labs, ports and switches are
asked from the running lab as you type.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

from shardnet.cli import usage

ASKED = {"LAB": "labs", "PORT": "ports", "SWITCH": "switches", "KIND": "kinds"}  # by `shardnet _complete`
FIXED = {"FORMAT": usage.FORMATS, "SHELL": ("bash", "zsh", "fish")}


@dataclasses.dataclass(frozen=True)
class Command:
    """What can follow a command's name."""

    name: str
    help: str
    options: list[usage.Option]
    verbs: dict[
        str, list[str]
    ]  # what a verb (`add` of `port add`) takes, as the usage text calls it; "" where there are no verbs


def run(argv: Sequence[str]) -> int:
    """Print one script."""
    shell = usage.parse(__doc__, "completion", argv)["SHELL"]
    if shell not in SHELLS:
        raise SystemExit(
            f"shardnet completion: {shell}: unknown shell{usage.did_you_mean(shell, SHELLS)}; bash, zsh and fish are known"
        )
    print(SHELLS[shell](), end="")
    return 0


def commands() -> list[Command]:
    """Every command as its usage text tells it."""
    found = []
    for name, text in usage.commands().items():
        verbs: dict[str, list[str]] = {}
        for words in usage.patterns(text):
            verb = words.pop(0) if words and words[0].islower() else ""
            verbs[verb] = list(dict.fromkeys(verbs.get(verb, []) + [word for word in words if word.isupper()]))
        found.append(Command(name, usage.summary(text), usage.options(text), verbs))
    return found


def bash() -> str:
    """The script for bash: one function, the commands' words as cases in it."""
    every = commands()
    values = _cases(
        (f"{one.name} {name}", option.value)
        for one in every
        for option in one.options
        if option.value
        for name in option.names
    )
    flags = [
        f"    {one.name}) flags='{' '.join(name for option in one.options for name in option.names)}' ;;"
        for one in every
    ]
    verbs = [f"    {one.name}) verbs='{' '.join(one.verbs)}' ;;" for one in every if "" not in one.verbs]
    takes = _cases((f"{one.name} {verb}", " ".join(taken)) for one in every for verb, taken in one.verbs.items())
    return _fill(
        BASH,
        commands=" ".join(one.name for one in every),
        values=values,
        flags="\n".join(flags),
        verbs="\n".join(verbs),
        takes=takes,
    )


def zsh() -> str:
    """The script for zsh: as bash's, with the help texts beside the words."""
    every = commands()
    values = _cases(
        (f"{one.name} {name}", option.value)
        for one in every
        for option in one.options
        if option.value
        for name in option.names
    )
    flags = []
    for one in every:
        texts = " ".join(_quoted(f"{name}:{option.help}") for option in one.options for name in option.names)
        flags.append(f"    {one.name}) flags=({texts}) ;;")
    verbs = [f"    {one.name}) verbs=({' '.join(one.verbs)}) ;;" for one in every if "" not in one.verbs]
    takes = _cases((f"{one.name} {verb}", " ".join(taken)) for one in every for verb, taken in one.verbs.items())
    texts = "\n".join(f"        {_quoted(f'{one.name}:{one.help}')}" for one in every)
    return _fill(ZSH, commands=texts, values=values, flags="\n".join(flags), verbs="\n".join(verbs), takes=takes)


def fish() -> str:
    """The script for fish: a `complete` line for each word."""
    lines = []
    for one in commands():
        lines.append(f"complete -c shardnet -n __shardnet_just -f -a {one.name} -d {_quoted(one.help)}")
        for option in one.options:
            names = " ".join(f"-{'l' if name.startswith('--') else 's'} {name.lstrip('-')}" for name in option.names)
            value = f" -r{_fish_words(option.value)}" if option.value else " -f"
            lines.append(f"complete -c shardnet -n '__shardnet_at {one.name}' {names}{value} -d {_quoted(option.help)}")
        verbs = " ".join(verb for verb in one.verbs if verb)
        if verbs:
            lines.append(f"complete -c shardnet -n '__shardnet_just {one.name}' -f -a '{verbs}'")
        for verb, taken in one.verbs.items():
            when = f"__shardnet_at {one.name} {verb}".rstrip()
            lines += [f"complete -c shardnet -n '{when}'{_fish_words(value)}" for value in taken]
    return _fill(FISH, lines="\n".join(lines))


def _fish_words(value: str) -> str:
    if value in ASKED:
        return f" -f -a '(__shardnet_ask {ASKED[value]})'"
    if value in FIXED:
        return f" -f -a '{' '.join(FIXED[value])}'"
    return " -F" if value in ("FILE", "COMMAND") else " -f"


def _cases(pairs: Iterable[tuple[str, str]]) -> str:
    """Lines of a shell's `case`, the patterns with the same answer joined."""
    patterns: dict[str, list[str]] = {}
    for pattern, answer in pairs:
        if answer:
            patterns.setdefault(answer, []).append(f"'{pattern}'")
    return "\n".join(f"    {'|'.join(these)}) takes='{answer}' ;;" for answer, these in patterns.items())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fill(script: str, **parts: str) -> str:
    return re.sub(r"@(\w+)@", lambda match: parts.get(match[1], _OFFERS.get(match[1], "")), script)


# What each script does with a word of the usage texts such as PORT, in words of bash and zsh that both know.
_OFFERS = {
    "asked": "\n".join(
        f'        {word}) names+=" $(shardnet _complete --lab=$lab {what} 2>/dev/null)" ;;'
        for word, what in ASKED.items()
    ),
    "fixed": "\n".join(f"        {word}) names+=' {' '.join(words)}' ;;" for word, words in FIXED.items()),
}

BASH = """\
# bash completion for shardnet, made by `shardnet completion bash`
_shardnet() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local command= verb= lab= takes= flags= verbs= names= files= word i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
        --) COMPREPLY=($(compgen -c -f -- "$cur")); return ;;
        -l|--lab) if ((i + 1 < COMP_CWORD)); then lab=${COMP_WORDS[++i]}; fi ;;
        -*) ;;
        *) if [[ -z $command ]]; then command=$word; elif [[ -z $verb ]]; then verb=$word; fi ;;
        esac
    done
    case "$command $prev" in
@values@
    ' -l'|' --lab') takes=LAB ;;
    esac
    if [[ -n $takes ]]; then
        :
    elif [[ -z $command ]]; then
        names='@commands@ --help --version --lab'
    elif [[ $cur == -* ]]; then
        case $command in
@flags@
        esac
        names=$flags
    else
        case $command in
@verbs@
        esac
        if [[ -z $verbs ]]; then verb=; elif [[ -z $verb ]]; then names=$verbs; fi
        case "$command $verb" in
@takes@
        esac
    fi
    for word in $takes; do
        case $word in
@asked@
@fixed@
        FILE) files=yes ;;
        esac
    done
    COMPREPLY=($(compgen -W "$names" -- "$cur"))
    if [[ -n $files ]]; then COMPREPLY+=($(compgen -f -- "$cur")); compopt -o filenames 2>/dev/null; fi
}
complete -F _shardnet shardnet
"""

ZSH = """\
#compdef shardnet
# zsh completion for shardnet, made by `shardnet completion zsh`
_shardnet() {
    local cur=${words[CURRENT]} prev=${words[CURRENT-1]}
    local command= verb= lab= takes= names= files= word i
    local -a flags verbs commands
    for ((i = 2; i < CURRENT; i++)); do
        word=${words[i]}
        case $word in
        --) shift $i words; ((CURRENT -= i)); _normal; return ;;
        -l|--lab) if ((i + 1 < CURRENT)); then lab=${words[++i]}; fi ;;
        -*) ;;
        *) if [[ -z $command ]]; then command=$word; elif [[ -z $verb ]]; then verb=$word; fi ;;
        esac
    done
    case "$command $prev" in
@values@
    ' -l'|' --lab') takes=LAB ;;
    esac
    if [[ -n $takes ]]; then
        :
    elif [[ -z $command ]]; then
        commands=(
@commands@
        )
        _describe command commands
        return
    elif [[ $cur == -* ]]; then
        case $command in
@flags@
        esac
        _describe -o option flags
        return
    else
        case $command in
@verbs@
        esac
        if ((! $#verbs)); then verb=; elif [[ -z $verb ]]; then compadd -a verbs; return; fi
        case "$command $verb" in
@takes@
        esac
    fi
    for word in ${=takes}; do
        case $word in
@asked@
@fixed@
        FILE) files=yes ;;
        esac
    done
    compadd -- ${=names}
    if [[ -n $files ]]; then _files; fi
}
if [[ $funcstack[1] == _shardnet ]]; then _shardnet "$@"; else compdef _shardnet shardnet; fi
"""

FISH = """\
# fish completion for shardnet, made by `shardnet completion fish`
function __shardnet_words -d 'the words typed so far, without options; with --lab, the value of that option'
    set -l lab
    set -l words
    for word in (commandline -opc)[2..-1]
        if test "$lab" = next
            set lab $word
        else if contains -- $word -l --lab
            set lab next
        else if not string match -q -- '-*' $word
            set -a words $word
        end
    end
    if test "$argv" = --lab
        set words $lab
    end
    string join \\n -- $words
end
function __shardnet_at
    set -l words (__shardnet_words)
    set -l count (count $argv)
    test (count $words) -ge $count; and test "$words[1..$count]" = "$argv"
end
function __shardnet_just
    test "$(__shardnet_words)" = "$argv"
end
function __shardnet_ask
    set -l lab (__shardnet_words --lab)
    shardnet _complete --lab=$lab $argv 2>/dev/null
end
complete -c shardnet -n __shardnet_just -f -l version -s V -d 'print the version'
complete -c shardnet -n __shardnet_just -f -l lab -s l -r -a '(__shardnet_ask labs)' -d 'the lab'
@lines@
"""

SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
