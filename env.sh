# Source this in bash or zsh, from any directory: `source env.sh`. It activates .venv and says where Dagster finds things.

_kronos_root="$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)"

if [ -f "$_kronos_root/.venv/bin/activate" ]; then
    . "$_kronos_root/.venv/bin/activate"
    export DAGSTER_MODULE_NAME=kronos_pipeline.definitions
    export DAGSTER_HOME="$_kronos_root/.dagster_home"
    export KRONOS_BASE_MODEL="${KRONOS_BASE_MODEL:-kronos-nano}"
    # A dagster.yaml in the repository's root would be taken for that of the root, so it lies with the code.
    mkdir -p "$DAGSTER_HOME"
    ln -sfn ../kronos_pipeline/orchestration/dagster.yaml "$DAGSTER_HOME/dagster.yaml"
    # `dev` hands a workspace file to its servers, and they refuse one beside an exported module's name.
    dagster() { if [ "${1:-}" = dev ]; then env -u DAGSTER_MODULE_NAME dagster "$@"; else command dagster "$@"; fi; }
    dg() { if [ "${1:-}" = dev ]; then env -u DAGSTER_MODULE_NAME dg "$@"; else command dg "$@"; fi; }
    unset _kronos_root
else
    echo "error: $_kronos_root/.venv is missing; run 'make venv' there, then source env.sh again." >&2
    unset _kronos_root
    false
fi
