# finwait: `make demo` and `make test` are all that a newcomer types.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Debian packages that the tests and the demo use as real counterparts and oracles.
APT := iproute2 iptables nftables conntrack gcc libc6-dev tmux zsh fish gdb chromium
STAMP := $(VENV)/.installed
# Exact versions with hashes. Whatever is published tomorrow, a clone of today stays what it was.
LOCK := requirements.lock
FUZZ_LOCK := requirements-fuzz.lock
SITE_LOCK := requirements-site.lock
DEPLOY_LOCK := requirements-deploy.lock
PIP := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install -qq --disable-pip-version-check
# Tests mostly wait for kernel timers: three at once take two fifths of the time, on two processors as well. 0: one by one.
TESTS_AT_ONCE ?= 3

.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml $(LOCK)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r $(LOCK)
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

venv: $(STAMP) ## make .venv with finwait (editable) and the development tools

system: # Debian packages, quietly, when we are root and something is missing
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  missing=$$(for p in $(APT); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	  if [ -n "$$missing" ]; then \
	    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing) \
	      >/dev/null 2>&1 || echo "could not install:" $$missing >&2; \
	  fi; \
	fi

demo: $(STAMP) system ## build the classic FIN_WAIT2 leak in a private namespace and diagnose it
	@own=; [ "$$(id -u)" = 0 ] || own="unshare --user --map-root-user --net"; \
	$$own $(BIN)/finwait lab demo || [ $$? = 3 ]  # 3: done, but not every process of this machine could be seen

demo-agent: $(STAMP) system ## the agent in a private namespace: a leak, its curve, kill -9, a restart, and ages that go on
	@$(BIN)/python examples/agent/demo.py

test: $(STAMP) system ## every test, three at once (TESTS_AT_ONCE=3); what fails is tried once more alone, and named
	@.ci/tests $(TESTS_AT_ONCE)

check-page: $(STAMP) system ## the agent's page and the report in Chromium: views, keys, dark, 360 px to 4K, names, contrast, policy; half a minute
	@$(BIN)/pytest -q tests/e2e/test_page.py tests/e2e/test_report_page.py tests/unit/web

check-metrics: $(STAMP) system ## the alert rules and the dashboard with real Prometheus and Alertmanager, two minutes; fetches Debian's packages
	@tests/fetch-prometheus build/prometheus
	@PATH="$$PATH:$(CURDIR)/build/prometheus/usr/bin" FINWAIT_CHECK_METRICS=1 FINWAIT_KERNEL_TESTS=1 \
	  $(BIN)/pytest -q tests/docs/test_alerts.py tests/unit/agent/test_metrics.py \
	    tests/unit/agent/test_alert_rules.py tests/kernel/test_alerts.py

chart: $(STAMP) ## the Helm chart and the plain manifests with real helm and Kubernetes' schemas 1.28 to 1.37, half a minute; fetches tools
	@tools=$$(PYTHON=$(BIN)/python deploy/fetch-tools) && PATH="$$PATH:$$tools" FINWAIT_CHECK_CHART=1 \
	  $(BIN)/pytest -q tests/docs/test_chart.py

manifests: $(STAMP) ## write deploy/kubernetes/finwait.yaml from the chart, and the chart's copies of rules and dashboard; fetches tools
	@tools=$$(PYTHON=$(BIN)/python deploy/fetch-tools) && $(BIN)/python deploy/render.py "$$tools/helm"

image: $(STAMP) ## the container image (OCI layout) and its SBOM in build/image, built twice and compared, then tried; two minutes
	@$(BIN)/python deploy/image/build.py build/image --twice
	@if [ "$$(id -u)" = 0 ]; then \
	  unshare --mount --net --propagation private $(BIN)/python deploy/image/try_image.py build/image/*.oci.tar; \
	else echo "not tried: that needs root"; fi

dist: $(STAMP) ## wheel, sources, one-file archives in dist, with RELEASE_URL=https://… a manifest for krew; fetches shiv
	@tools=$$(PYTHON=$(BIN)/python deploy/fetch-tools) && $(BIN)/python deploy/dist.py dist "$$tools/venv/bin/python" $(RELEASE_URL)

test-latest: $(STAMP) ## what needs no kernel, on the newest versions of everything; never fails
	@.ci/latest

test-pythons: ## what needs no kernel, with each Python that we support and that is here
	@.ci/pythons

lock: ## renew the locked versions (from the package index that pip and uv are set up for)
	@test -x $(VENV)/lock/bin/uv || { $(PYTHON) -m venv $(VENV)/lock && \
	  $(VENV)/lock/bin/python -m pip install -qq --disable-pip-version-check 'uv>=0.7'; }
	@export UV_CUSTOM_COMPILE_COMMAND='make lock'; \
	lock="$(VENV)/lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes"; \
	lock="$$lock --no-emit-index-url --no-emit-find-links"; \
	$$lock --extra dev --group build pyproject.toml -o $(LOCK) && \
	$$lock --extra fuzz pyproject.toml -c $(LOCK) -o $(FUZZ_LOCK) && \
	$$lock --group pyproject.toml:site -c $(LOCK) -o $(SITE_LOCK) && \
	$$lock --group pyproject.toml:deploy -c $(LOCK) -o $(DEPLOY_LOCK)

format: $(STAMP) ## rewrite the sources in the project's format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(STAMP)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/mypy

imports: $(STAMP)
	@$(BIN)/lint-imports

docs: $(STAMP) ## write the generated pages (reference, man page, schema, completions) and pasted sessions
	@$(BIN)/python docs/generate.py && $(BIN)/python -m tests.docs.sessions

rule: $(STAMP) ## the files of a new rule, to be filled in (NAME=my-rule); see CONTRIBUTING.md
	@test -n "$(NAME)" || { echo "make rule NAME=my-rule: a name for the pattern that it sees" >&2; exit 2; }
	@$(BIN)/python -m scaffold.rule "$(NAME)" && $(MAKE) --no-print-directory docs

site: $(STAMP) ## the documentation as a site with search, in build/site; opens without a server
	@$(PIP) --require-hashes -r $(SITE_LOCK) && $(BIN)/python docs/build_site.py

check: lint types imports fuzz-quick site test ## what CI runs

bench: $(STAMP) system ## the benchmarks; results go to bench/RESULTS.md
	@$(BIN)/python -m bench

mutants: $(STAMP) system ## change the code in 300 places, one at a time: which changes does no test see? (SEED=1 MUTANTS=300)
	@nice -n 10 $(BIN)/python -m tests.mutants --seed $${SEED:-1} --mutants $${MUTANTS:-300} -j 2 $(MUTANTS_OF)

soak: $(STAMP) system ## the relay under everything at once, ten minutes (SOAK_SECONDS=600)
	@$(BIN)/python -m tests.kernel.relay_soak --seconds $${SOAK_SECONDS:-600}

sequences: $(STAMP) system ## the relay against a model, a million random scripts, 20 minutes (SEQUENCES=1000000 SEED=1)
	@$(BIN)/python -m tests.kernel.relay_random --sequences $${SEQUENCES:-1000000} --seed $${SEED:-1}

kernels: $(STAMP) guest ## finwait on other kernels, emulated, 20 minutes each (KERNELS="5.10 6.1 6.12 7.2")
	@$(BIN)/python -m tests.guest $(KERNELS); status=$$?; $(BIN)/python docs/generate.py; exit $$status

kernels-restricted: $(STAMP) guest ## one kernel locked down, without IPv6, under yama, without modules; ten minutes (KERNELS=6.12)
	@$(BIN)/python -m tests.guest --restricted $${KERNELS:-6.12}; status=$$?; $(BIN)/python docs/generate.py; exit $$status

kernels-smoke: $(STAMP) ## the shortest proof that it works on 5.10, half a minute of processor time; skipped where there is no qemu or kernel
	@$(BIN)/python -m tests.guest --smoke --offline 5.10 || [ $$? = 77 ]

guest: # what boots a guest, installed when we are root
	@$(MAKE) --no-print-directory system APT="$(APT) qemu-system-x86 squashfs-tools busybox-static kmod cpio zstd"

kube-e2e: $(STAMP) ## the chart on a real Kubernetes 1.20 node, built from Debian's sources the first time (half an hour); then half an hour
	@$(BIN)/python -m tests.kube_e2e --keep || [ $$? = 77 ]

fuzz: $(STAMP) ## fuzz the decoders, a minute in all (FUZZ_SECONDS=60)
	@$(PIP) --require-hashes -r $(FUZZ_LOCK) && $(BIN)/python -m fuzz --seconds $${FUZZ_SECONDS:-60}

fuzz-quick: $(STAMP)
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=$${FUZZ_SECONDS:-60}

clean: ## remove what make made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help venv system demo demo-agent test check-page check-metrics chart manifests image dist test-latest test-pythons lock format lint types imports docs rule site check bench mutants soak sequences kernels kernels-restricted kernels-smoke guest kube-e2e fuzz fuzz-quick clean
