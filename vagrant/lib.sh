# Shared by the scripts in vagrant/: paths, messages and functions for the VM.
#
# A machine has one lab of each flavour, whatever the number of clones. Its state
# is in $lab, so that another clone finds it, uses it or removes it. Another
# HOTSLOT_LAB is another lab; the last part of the path is the name of the VM.
#
# HOTSLOT_LAB_FLAVOUR is `stable` (Debian 13) or `next` (with the newest kernel,
# libvirt and QEMU, from its backports).
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
flavour=${HOTSLOT_LAB_FLAVOUR:-stable}
case $flavour in
    stable) lab=${HOTSLOT_LAB:-/var/lib/hotslot-lab} first_port=22922 ;;
    next) lab=${HOTSLOT_LAB:-/var/lib/hotslot-lab-next} first_port=22942 ;;
    *)
        printf 'HOTSLOT_LAB_FLAVOUR is %s; it must be stable or next\n' "$flavour" >&2
        exit 2
        ;;
esac
name=${lab##*/}
pool=$lab/pool
box=$lab/box
key=$lab/key
control=$lab/ssh.sock
snapshot=$lab/snapshot

export HOTSLOT_LAB=$lab VAGRANT_CWD=$here VAGRANT_HOME=$lab/vagrant-home
export VAGRANT_DOTFILE_PATH=$lab/vagrant-dot VAGRANT_CHECKPOINT_DISABLE=1
export LIBVIRT_DEFAULT_URI=qemu:///system

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# step WHAT COMMAND…: prints WHAT, runs the command, and prints how long it took.
# If the command fails, the script ends (set -e) and the trap names the step,
# unless the script checks the exit code.
step() {
    local what=$1 outer=$doing started=${EPOCHREALTIME/./} ms
    doing=$what
    shift
    say "$what…"
    "$@" || return
    ms=$(((${EPOCHREALTIME/./} - started) / 1000))
    say "$what: $((ms / 1000)).$((ms % 1000 / 100)) s"
    doing=$outer
}
doing=
failed() { (($? == 0)) || [[ -z $doing ]] || say "FAILED: $doing"; }
trap failed EXIT

ssh_options=(
    -F /dev/null -i "$key" -o IdentitiesOnly=yes -o LogLevel=ERROR
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    -o ControlMaster=auto -o "ControlPath=$control" -o ControlPersist=yes
    -o ConnectTimeout=5 -o ServerAliveInterval=5 -o ServerAliveCountMax=12
)
port() { cat "$lab/ssh-port" 2>/dev/null || echo 1; }
# The shared connection outlives this script and must not keep its lock (descriptor 9) open.
in_vm() { ssh "${ssh_options[@]}" -p "$(port)" root@127.0.0.1 "$@" 9>&-; }

# Closes the shared connection; the next command opens a new one.
hang_up() {
    ssh "${ssh_options[@]}" -O exit root@127.0.0.1 2>/dev/null || true
    rm -f "$control"
}

# Whether the VM answers. A VM that has just reset itself gets time to boot.
answers() {
    local deadline=$((SECONDS + 90))
    until timeout 10 ssh "${ssh_options[@]}" -p "$(port)" root@127.0.0.1 true 9>&- 2>/dev/null; do
        ((SECONDS < deadline)) || return
        say "the VM does not answer yet"
        sleep 2
    done
}

# A snapshot contains the VM's memory, in which guest q35 is running, and its disk.
# Saving stops the VM. `complete` is written last. A VM with an NVMe device cannot
# be saved.
save_vm() {
    rm -rf "$snapshot.new"
    mkdir "$snapshot.new"
    hang_up
    virsh -q save "$name" "$snapshot.new/memory" --running >/dev/null &&
        cp "$pool/$name.img" "$snapshot.new/disk" &&
        touch "$snapshot.new/complete" &&
        rm -rf "$snapshot" &&
        mv "$snapshot.new" "$snapshot"
}

# Restores the VM from its snapshot, exactly as it was saved, from any state.
resume_vm() {
    hang_up
    virsh -q destroy "$name" >/dev/null 2>&1 || true
    cp "$snapshot/disk" "$pool/$name.img" &&
        virsh -q restore "$snapshot/memory" >/dev/null &&
        answers
}

# Restores the VM from its snapshot, plugs the NVMe devices in and sets the clock.
restore_vm() {
    local attempt
    for attempt in 1 2 3; do
        # The VM's clock still has the time at which the snapshot was taken.
        if resume_vm && plug_nvmes && in_vm "date --set=@$EPOCHREALTIME >/dev/null && lab-awake"; then
            environment
            return
        fi
        say "attempt $attempt to restore the VM failed"
    done
    return 1
}

# Writes how to reach this lab, for the tests. They use the lab that was started or restored last.
environment() {
    mkdir -p "$here/.lab"
    printf '%s\n' "HOTSLOT_LAB=$lab" "HOTSLOT_LAB_SSH_PORT=$(port)" "HOTSLOT_LAB_SSH_KEY=$key" \
        "HOTSLOT_LAB_SSH_CONTROL=$control" >"$here/.lab/env"
}

# Plugs the NVMe devices into the VM, on the ports that the Vagrantfile has for
# them. The machine's libvirt does not know them, nor the other devices under test.
plug_nvmes() {
    local device answer
    for device in '"id": "nvme0", "serial": "LAB0", "bus": "lab13", "drive": "disk0"' \
        '"id": "nvme1", "serial": "LAB1", "bus": "lab14", "subsys": "subsystem",
            "sriov_max_vfs": 2, "sriov_vq_flexible": 4, "sriov_vi_flexible": 2'; do
        answer=$(virsh -q qemu-monitor-command "$name" \
            "{\"execute\": \"device_add\", \"arguments\": {\"driver\": \"nvme\", $device}}")
        # They stay plugged in when the VM reboots, so a duplicate is no error.
        [[ $answer == *'"return"'* || $answer == *'Duplicate device ID'* ]] || { say "$answer"; return 1; }
    done
}

# Only one of up, down, reset and keep runs at a time. Processes that a killed run
# left behind still hold the lock; they are killed.
lock() {
    local owner pid reported=
    ((EUID == 0)) || die "the lab needs root; use sudo"
    mkdir -p "$lab"
    exec 9>>"$lab/lock"
    until flock -n 9; do
        owner=$(cat "$lab/owner" 2>/dev/null || true)
        if [[ /proc/$owner/fd/9 -ef $lab/lock ]]; then
            [[ -n $reported ]] || say "waiting for another run (process $owner) to end"
            reported=1
            sleep 1
        else
            for pid in $(exec 9>&-; fuser "$lab/lock" 2>/dev/null); do
                # Other scripts that wait like this one are left alone.
                if [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") =~ ^bash\ .*/(up|down|reset|keep)\  ]]; then continue; fi
                say "killing process $pid, which a killed run left behind: $(cat "/proc/$pid/comm" || true)"
                kill -9 "$pid" || true
            done
            sleep 0.2
        fi
    done
    echo $$ >"$lab/owner"
}

# Removes the VM and everything that belongs to it, from any state.
remove_vm() {
    local what
    rm -f "$lab/vm" "$here/.lab/env"
    hang_up
    if virsh -q uri >/dev/null 2>&1; then
        for what in destroy undefine pool-destroy net-destroy net-undefine; do
            virsh -q $what "$name" >/dev/null 2>&1 || true
        done
    fi
    rm -rf "$pool" "$snapshot" "$snapshot.new" "$VAGRANT_DOTFILE_PATH" "$VAGRANT_HOME/data/machine-index"
}
