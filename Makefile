# Every target does its own set-up on a fresh machine (root and apt for what needs the network).
PY := .venv/bin/python
TOOLS := nftables dnsmasq-base iproute2 wireguard-go wireguard-tools tcpdump iputils-ping patch procps
BENCH_TOOLS := iperf3 wrk
# One package per line, with comments.
KERNEL_TOOLS = $(shell sed 's/\#.*//' tests/kernel/packages.txt)
CONTAINER_TOOLS = $(filter-out $(OWN_DOCKER),$(shell sed 's/\#.*//' tests/containers/packages.txt tests/containers/packages-podman.txt))
# Debian's would replace another one that is there.
OWN_DOCKER = $(if $(shell command -v dockerd),docker.io)
LOOK_TOOLS = $(shell sed 's/\#.*//' tests/page/packages.txt tests/monitoring/packages.txt tests/packaging/packages.txt)
CLUSTER_TOOLS = $(shell sed 's/\#.*//' tests/cluster/packages.txt)
# Debian 12's is too old, and later ones' are not.
OWN_GO = $(if $(shell command -v go || ls /usr/local/go/bin/go 2>/dev/null),,golang-go)

.PHONY: demo demo-picture dashboard-picture compare demo-compose image test test-unit test-nft test-bare test-cluster test-helm chart docs check bench bench-kernel chaos clean

# What leaves a pod without, with init-wg and with wg-quick, judged on its node. Root; under a minute.
demo:
	@tests/prepare.sh $(TOOLS)
	@$(PY) -m tests.demo

# The same, played into docs/pictures/demo.svg.
demo-picture:
	@tests/prepare.sh $(TOOLS)
	@$(PY) -m tests.picture

# k8s/monitoring/dashboard.json as docs/pictures/dashboard.png, from a real Prometheus' answers: six minutes. Root.
dashboard-picture:
	@tests/prepare.sh $(TOOLS) go prometheus
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt matplotlib
	@$(PY) -m tests.monitoring.picture

# init-wg beside wg-quick and what people build on it, as tables: fifteen minutes. Root. GLUETUN=/path/to/gluetun adds it;
# COMPARE=--write puts the tables into docs/comparison.md.
compare:
	@tests/prepare.sh $(TOOLS) go iptables curl iperf3
	@$(PY) -m tests.compare $(COMPARE)

# The image, in the Docker daemon that answers here, or else in the tests' own. Root.
image: .venv/.prepared
	@tests/prepare.sh $(CONTAINER_TOOLS)
	@$(PY) -m tests.containers.demo image

# The stack of compose/ up, and what the web sees of it while its parts are killed. Root; a minute.
demo-compose: .venv/.prepared
	@tests/prepare.sh $(CONTAINER_TOOLS)
	@$(PY) -m tests.containers.demo

test:
	tests/prepare.sh $(TOOLS) go $(KERNEL_TOOLS) $(CONTAINER_TOOLS) $(LOOK_TOOLS)
	@mkdir -p .cache
	@# Two queues of like length, since most tests wait most of the time. The second one's report comes at the end.
	@$(PY) -m pytest --ignore tests/netns --ignore tests/cluster --ignore tests/helm > .cache/others.log 2>&1 & others=$$!; \
	$(PY) -m pytest tests/netns; networks=$$?; \
	wait $$others; others=$$?; cat .cache/others.log; exit $$((networks || others))

# The pure parts: no root, any system with Python.
test-unit: .venv/.prepared
	$(PY) -m pytest tests/unit

# The network tests with the nft of another release of Debian than this machine's. Root. NFT=bookworm; TESTS="file ..."
NFT ?= trixie
test-nft:
	@tests/prepare.sh $(TOOLS)
	tests/nft.sh bookworm trixie
	PATH="$(CURDIR)/.cache/nft/$(NFT)/bin:$$PATH" $(PY) -m pytest $(or $(TESTS),tests/netns)

# The pages that are made of the code, and the manifests that are made of one.
docs: .venv/.prepared
	$(PY) -m tests.documents

# Root. The commands of the README on bare Debian 12 and 13 and Ubuntu 24.04. BARE=full: make test, too.
# SUITES="trixie sid" selects.
test-bare:
	@tests/prepare.sh mmdebstrap
	@$(PY) -m tests.bare $(SUITES)

# A real Kubernetes on this machine, of one node, built from Go modules (minutes, once) and started in namespaces of its own.
# Root. CLUSTER="-k name" selects.
test-cluster:
	@tests/prepare.sh $(TOOLS) $(CONTAINER_TOOLS) $(CLUSTER_TOOLS) $(OWN_GO)
	@$(PY) -m tests.cluster.build
	$(PY) -m pytest tests/cluster $(CLUSTER)

# The chart as a package in dist/, by Helm 4's library.
chart: .venv/.prepared
	@mkdir -p dist
	@$(PY) -m tests.chart.helm dist

# Helm 3 and 4, built from Go modules (minutes, once), render the chart alike and run the post-renderer.
test-helm:
	@tests/prepare.sh $(OWN_GO)
	@$(PY) -m tests.helm.build
	$(PY) -m pytest tests/helm

check: .venv/.prepared
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# Root. BENCH="name name ..." selects; an unknown name lists them.
bench:
	@tests/prepare.sh $(TOOLS) go $(BENCH_TOOLS)
	@$(PY) -m tests.bench $(BENCH)

# Root. `up` against wg-quick on kernel WireGuard, in the tests' virtual machine: its ratios count, not its seconds.
bench-kernel:
	@tests/prepare.sh $(TOOLS) $(KERNEL_TOOLS) $(BENCH_TOOLS)
	@$(PY) -m tests.kernel.guest --timeout 1200 -- $(PY) -m tests.bench up --runs 5

# Root. Random faults, two at a time, and the watchdog. CHAOS="--faults 1000 --seed 1", --seconds, --setting.
chaos:
	@tests/prepare.sh $(TOOLS) go
	@$(PY) -m tests.netns.chaos $(CHAOS)

clean:
	rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.prepared: pyproject.toml constraints.txt
	tests/prepare.sh
