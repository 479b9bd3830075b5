# Sourced by scripts/test and scripts/torture, from the project's folder: steps that leave nothing
# behind, whatever happens, a failure or Ctrl-C.

# All that a test run starts or mounts has this folder in its environment or command line. Other
# users' mounts lie in it as well, so they must be able to walk through it.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/blobfs-test-XXXXXX") || exit
chmod 711 "$scratch"
export TMPDIR=$scratch

child=
interrupted=
failed=
summary=()

interrupt() {
    interrupted=yes
    [[ -z $child ]] || kill -INT "$child" 2>/dev/null
}

leftover_processes() {
    local process
    for process in /proc/[0-9]*; do
        if [[ $process != "/proc/$$" ]] &&
            grep -qsF "$scratch" "$process/cmdline" "$process/environ"; then
            echo "${process#/proc/}"
        fi
    done
}

leftover_mounts() {
    findmnt -rno TARGET -t fuse.blobfs | grep -F "$scratch/"
}

clean_up() {
    local status=$? pid mount round
    # A daemon leaves, and takes its mount along, on TERM; what has not left in 5 s is killed.
    for round in {1..60}; do
        mapfile -t pids < <(leftover_processes)
        ((${#pids[@]})) || break
        if ((round == 1)); then
            [[ $interrupted ]] || echo "left behind by the tests: ${pids[*]}" >&2
            status=1
            kill -TERM "${pids[@]}" 2>/dev/null
        elif ((round == 50)); then
            kill -KILL "${pids[@]}" 2>/dev/null
        fi
        sleep 0.1
    done
    while read -r mount; do
        [[ $interrupted ]] || echo "left mounted by the tests: $mount" >&2
        status=1
        fusermount3 -u -z "$mount"
    done < <(leftover_mounts)
    rm -rf --one-file-system "$scratch"
    exit "$status"
}

trap clean_up EXIT
trap interrupt INT TERM HUP

# step NAME COMMAND...: runs in the background and in a session of its own, so that a signal comes
# here, at once, and is handed on exactly once (a second one would break off pytest's teardown).
step() {
    local name=$1 start=$SECONDS status
    shift
    echo "== $name"
    setsid env --default-signal=INT "$@" <&0 &
    child=$!
    while
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null # alive: a signal ended the wait, not the child
    do :; done
    child=
    if ((status)); then failed=yes; fi
    summary+=("$(printf '%-8s %-12s %4d s' \
        "$( ((status)) && echo FAILED || echo ok)" "$name" $((SECONDS - start)))")
    if [[ $interrupted ]]; then exit 130; fi
}

# report: the last words, and the exit status.
report() {
    printf '%s\n' "" "${summary[@]}"
    [[ -z $failed ]]
}
