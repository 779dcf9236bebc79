# Sourced by run.sh and tests/run.sh: an environment with the packages of the file named as first argument.
# Uses the environment that is active; where none is, makes .venv with Python 3.11, as the tests, or with 3.12 or 3.13.

requirements="$1"
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        interpreter=""
        for candidate in python3.11 python3 python3.12 python3.13; do
            if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
                interpreter="$candidate"
                break
            fi
        done
        if [ -z "$interpreter" ]; then
            echo "error: no Python 3.11 to 3.13 found; install one, or activate an environment that has it" >&2
            exit 2
        fi
        echo "making .venv with $("$interpreter" --version)"
        "$interpreter" -m venv .venv
    fi
    source .venv/bin/activate
fi

# Install once per version of the files.
stamp="$(python -c 'import sys; print(sys.prefix)')/.recgpt-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements"
if [ ! -e "$stamp" ]; then
    echo "installing $requirements into $(python -c 'import sys; print(sys.prefix)')"
    python -m pip install --quiet --disable-pip-version-check -r "$requirements"
    touch "$stamp"
fi
