# Source this in bash or zsh, from any directory: `source env.sh`. It activates .venv and says where Dagster finds things.

_kronos_root="$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)"

# GPUs that Dagster trains on, with KRONOS_TRAININGS_PER_GPU trainings each: the user's own number, or those found.
_kronos_gpus="${KRONOS_GPUS:-$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU ' || true)}"
[ "$_kronos_gpus" != 0 ] || [ -n "${KRONOS_GPUS:-}" ] || _kronos_gpus=1

if [ ! -f "$_kronos_root/.venv/bin/activate" ]; then
    echo "error: $_kronos_root/.venv is missing; run 'make venv' there, then source env.sh again." >&2
    unset _kronos_root _kronos_gpus
    false
elif ! printf '%s\n' "$_kronos_gpus" | grep -Eqx '[1-9][0-9]{0,2}'; then
    echo "error: KRONOS_GPUS is '$_kronos_gpus', and a whole number from 1 to 999 is needed; unset it or change it." >&2
    unset _kronos_root _kronos_gpus
    false
elif ! printf '%s\n' "${KRONOS_TRAININGS_PER_GPU:-1}" | grep -Eqx '[1-9]|[1-5][0-9]|6[0-4]'; then
    echo "error: KRONOS_TRAININGS_PER_GPU is '$KRONOS_TRAININGS_PER_GPU', and a whole number from 1 to 64 is needed; unset it or change it." >&2
    unset _kronos_root _kronos_gpus
    false
else
    . "$_kronos_root/.venv/bin/activate"
    export DAGSTER_MODULE_NAME=kronos_pipeline.definitions
    # An instance for each data folder, so that no folder's history shows another folder's tickers. A DAGSTER_HOME of the
    # user's own stays; a folder in .dagster_home is from an earlier `source env.sh`.
    case "${DAGSTER_HOME:-}" in
        "" | "$_kronos_root/.dagster_home" | "$_kronos_root/.dagster_home/"*)
            _kronos_data="${KRONOS_DATA_DIR:-trainingdata}"
            _kronos_data="$(CDPATH= cd -- "$_kronos_data" 2>/dev/null && pwd || printf '%s' "$_kronos_data")"
            _kronos_data="${_kronos_data#"$_kronos_root/"}"
            _kronos_name="$(printf '%s' "${_kronos_data##*/}" | tr -c 'A-Za-z0-9._-' '_')"
            case "$_kronos_data" in
                */*) _kronos_name="$_kronos_name-$(printf '%s' "$_kronos_data" | cksum | cut -d ' ' -f 1)" ;;
            esac
            export DAGSTER_HOME="$_kronos_root/.dagster_home/$_kronos_name"
            ;;
    esac
    export KRONOS_BASE_MODEL="${KRONOS_BASE_MODEL:-kronos-nano}"
    export KRONOS_GPUS="$_kronos_gpus"
    # Seconds that Dagster waits for its code server, by default 60: too short to launch a run on a busy machine.
    export DAGSTER_GRPC_TIMEOUT_SECONDS="${DAGSTER_GRPC_TIMEOUT_SECONDS:-300}"
    # Ctrl-C waits for a call no longer than before.
    export DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD="${DAGSTER_GRPC_SHUTDOWN_GRACE_PERIOD:-60}"
    # Dagster takes no `env:` for these two limits, so the numbers are written into a copy. The copy gets its name when
    # it is complete, because a daemon may read it meanwhile.
    mkdir -p "$DAGSTER_HOME"
    _kronos_yaml="$_kronos_root/kronos_pipeline/orchestration/dagster.yaml"
    # In a DAGSTER_HOME of the user's own, a dagster.yaml stays as it is.
    if [ ! -e "$DAGSTER_HOME/dagster.yaml" ] || [ -n "${_kronos_name:-}" ]; then
        _kronos_trainings="$((KRONOS_GPUS * ${KRONOS_TRAININGS_PER_GPU:-1}))"
        sed -e "s/^\( *default_limit:\) .*/\1 $_kronos_trainings/" \
            -e "s/^\( *max_concurrent_runs:\) .*/\1 $((_kronos_trainings + 3))/" \
            "$_kronos_yaml" >"$DAGSTER_HOME/.dagster.yaml.$$"
        mv -f "$DAGSTER_HOME/.dagster.yaml.$$" "$DAGSTER_HOME/dagster.yaml"
    fi
    # `dev` hands a workspace file to its servers, and they refuse one beside an exported module's name.
    # At its own level, info, `dev` prints each tick of each sensor; a --log-level of the user's own comes later and holds.
    _kronos_dev() { env -u DAGSTER_MODULE_NAME "$1" dev --log-level warning "${@:3}"; }
    dagster() { if [ "${1:-}" = dev ]; then _kronos_dev dagster "$@"; else command dagster "$@"; fi; }
    dg() { if [ "${1:-}" = dev ]; then _kronos_dev dg "$@"; else command dg "$@"; fi; }
    unset _kronos_root _kronos_gpus _kronos_data _kronos_name _kronos_yaml _kronos_trainings
fi
