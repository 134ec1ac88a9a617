#!/bin/sh
# Sees to the Debian packages that Python packages cannot bring: software rendering (OSMesa), EGL's loader where there is a
# GPU, what OpenCV links to, the filter of system calls of the reward sandbox, and venv itself. Installs them as root;
# otherwise says in one line what to install. Elsewhere than Debian it only warns.
set -eu

packages="libosmesa6 libgl1 libglib2.0-0 libseccomp2"
# A GPU's driver brings its own EGL library, but not always the loader that finds it.
[ -e /dev/nvidia0 ] && packages="$packages libegl1"
version=$(${PYTHON:-python3} -c 'import sys; print("%d.%d" % sys.version_info[:2])')
${PYTHON:-python3} -c 'import ensurepip' 2>/dev/null || packages="$packages python3-venv python$version-venv"

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "not a Debian system: make sure that OSMesa (or EGL), OpenGL and GLib are installed" >&2
    exit 0
fi

missing=""
for package in $packages; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    # Newer Debian and Ubuntu name the GLib package libglib2.0-0t64, which provides the old name.
    [ "$package" = libglib2.0-0 ] && [ -z "$status" ] &&
        status=$(dpkg-query -W -f '${Status}' libglib2.0-0t64 2>/dev/null || true)
    case "$status" in *"install ok installed"*) ;; *) missing="$missing $package" ;; esac
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing system packages; run: sudo apt-get install$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# One at a time, so that a name this release does not have (python3.x-venv under pyenv, say) spoils no other.
for package in $missing; do
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null || echo "could not install $package" >&2
done
