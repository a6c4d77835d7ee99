# What vagrant/'s scripts share: where things are, and how to say what is going on.
# There is one lab a machine, whatever the number of clones: its state is in
# $lab, so that another clone finds it, takes it over or takes it down.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lab=${HOTSLOT_LAB:-/var/lib/hotslot-lab}
key=$lab/key
control=$lab/ssh.sock
ssh_options=(
    -F /dev/null -i "$key" -o IdentitiesOnly=yes -o LogLevel=ERROR
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    -o ControlMaster=auto -o "ControlPath=$control" -o ControlPersist=yes
    -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=12
)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# step WHAT COMMAND…: says what is done, does it, says how long it took. Where
# it fails the script ends (set -e), and the trap says in which step.
step() {
    local started=${EPOCHREALTIME/./} ms
    doing=$1
    shift
    say "$doing…"
    "$@"
    ms=$(((${EPOCHREALTIME/./} - started) / 1000))
    say "$doing: $((ms / 1000)).$((ms % 1000 / 100)) s"
    doing=
}
doing=
trap '[[ -z $doing ]] || say "FAILED: $doing"' EXIT

port() { cat "$lab/ssh-port" 2>/dev/null || echo 0; }
in_vm() { ssh "${ssh_options[@]}" -p "$(port)" root@127.0.0.1 "$@"; }
