# shellcheck shell=sh
# What the launch scripts share; they read it with `.`.

fail() { # fail MESSAGE: a mistake in how the script was called
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 2
}

number() { # number NAME VALUE: refuses what is not a whole number of at least 1
    case $2 in
        '' | *[!0-9]* | 0*)
            fail "$1 is '$2'; expected a whole number of at least 1. ${0##*/} --help tells more." ;;
    esac
}

quoted() { # quoted WORD...: the words as one line that a shell reads back as they are
    separator=''
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        printf '%s%s' "$separator" "$word"
        separator=' '
    done
    printf '\n'
}
