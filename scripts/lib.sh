# shellcheck shell=bash
# Small helpers that the other scripts source.

say() { printf '%s\n' "$*"; }
die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# as_root CMD...: run a command with root's rights, or say how to get them.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    elif command -v sudo >/dev/null && [ -t 0 ]; then
        sudo "$@"
    else
        return 77
    fi
}

# give_back PATH...: under sudo, what was made in a user's checkout belongs to that user.
give_back() {
    local path
    [ "$(id -u)" = 0 ] && [ -n "${SUDO_UID:-}" ] && [ "$(stat -c %u .)" = "$SUDO_UID" ] || return 0
    for path; do
        [ ! -e "$path" ] || chown -RhP "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$path"
    done
}
