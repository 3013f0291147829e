# One image, two commands: init-wg and init-wg-watchdog. The final stage has no shell, no pip and no package manager.
#
#     docker build --tag init-wg .
#
# The kill-switch is compared with what nft prints, letter by letter: the base decides nft's version (1.0.6).
ARG BASE=debian:bookworm-slim
ARG GO_BASE=debian:trixie-slim

# Debian 12's wireguard-go is of 2022 and moves half as much. go.mod has the version, go.sum the checksums, and each
# patch its reason.
FROM ${GO_BASE} AS wireguard-go
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update -q \
 && apt-get install -q -y --no-install-recommends ca-certificates golang-go patch \
 && rm -rf /var/lib/apt/lists/*
# As for Go itself; empty: its own default.
ARG GOPROXY
COPY image/wireguard-go /source
RUN /source/build.sh /wireguard-go && rm -rf /root/.cache /root/go

FROM ${BASE} AS build
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update -q \
 && apt-get install -q -y --no-install-recommends dnsmasq-base netbase nftables python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
# The environment itself has no pip; the one that fills it stays behind in this stage.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/init-wg
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY constraints.txt pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    >requirements.txt \
 && /pip/bin/pip --python /opt/init-wg/bin/python install -q --no-compile -c constraints.txt -r requirements.txt
COPY LICENSE README*.md ./
COPY init_wg init_wg
COPY watchdog watchdog
RUN /pip/bin/pip --python /opt/init-wg/bin/python install -q --no-compile --no-deps .
COPY --from=wireguard-go /wireguard-go/wireguard-go /usr/bin/wireguard-go
COPY --from=wireguard-go /wireguard-go/copyright /usr/share/doc/wireguard-go/copyright
COPY image/rootfs.py /rootfs.py
RUN python3 /rootfs.py /rootfs /opt/init-wg

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="init-wg" \
      org.opencontainers.image.description="Leak-proof WireGuard egress for pods and compose stacks" \
      org.opencontainers.image.licenses="MIT AND AGPL-3.0-or-later" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# Root, because only root keeps a capability through exec; all others are dropped where it is run.
USER 0:0
EXPOSE 9999
STOPSIGNAL SIGTERM
CMD ["init-wg"]
