# Each recipe is one of the scripts, so that nothing here can say something else than they do.

# List the recipes
default:
    @just --list

# Build, look at the machine, and serve on 127.0.0.1:8080
[group('use')]
run *arguments:
    scripts/run {{arguments}}

# Run every test
[group('develop')]
test *arguments:
    scripts/test {{arguments}}

# Look at dependencies, hold the server against its OpenAPI document, soak it
[group('develop')]
check *arguments:
    scripts/check {{arguments}}

# Run thousands of mixed tasks, and see that nothing grows
[group('develop')]
soak *arguments:
    scripts/soak {{arguments}}

# Run libFuzzer on what reads bytes that others made
[group('develop')]
fuzz *arguments:
    scripts/fuzz {{arguments}}

# Measure, against bare spawns in the same run
[group('develop')]
bench *arguments:
    scripts/bench {{arguments}}

# Build and test every image
[group('use')]
images *arguments:
    scripts/images {{arguments}}

# Run a command in a virtual machine with cgroup v2 alone
[group('develop')]
vm *arguments:
    scripts/vm {{arguments}}

# Build the Debian package; --try installs it in a virtual machine
[group('use')]
package *arguments:
    scripts/package {{arguments}}

# Compile for arm64, and run the tests there, emulated
[group('develop')]
arm64 *arguments:
    scripts/arm64 {{arguments}}

# Build the container image, and try the flags it runs with
[group('develop')]
container *arguments:
    scripts/container {{arguments}}

# Format the code
[group('develop')]
format:
    cargo fmt

# Everything a change must pass
[group('develop')]
ci:
    .ci/run
