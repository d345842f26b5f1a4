package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// errNoPackage says that the distribution does not have what was asked for, or
// that we may not install it.
var errNoPackage = errors.New("no package to be had")

// aptInstall installs the first of the named packages that the distribution
// has. A failed update is not the end: the lists may be there already.
func aptInstall(ctx context.Context, names ...string) error {
	apt, err := aptGet()
	if err != nil {
		return err
	}
	updateLists(ctx)
	for _, name := range names {
		out, err := exec.CommandContext(ctx, "apt-cache", "policy", name).Output()
		if err != nil || !strings.Contains(string(out), "Candidate: ") || strings.Contains(string(out), "Candidate: (none)") {
			continue
		}
		say("installing package %s", name)
		return run1(ctx, apt[0], append(apt[1:], "install", "-y", "-qq", "--no-install-recommends", name)...)
	}
	return fmt.Errorf("%w: the distribution has none of %s", errNoPackage, strings.Join(names, ", "))
}

var aptUpdate sync.Once

// updateLists gets the lists of packages anew, once, where we may.
func updateLists(ctx context.Context) {
	apt, err := aptGet()
	if err != nil {
		return
	}
	aptUpdate.Do(func() {
		say("updating the package lists")
		if err := run1(ctx, apt[0], append(apt[1:], "update", "-qq")...); err != nil {
			say("%v", err)
		}
	})
}

// aptGet returns the command that installs packages, with sudo where that asks
// for no password.
func aptGet() ([]string, error) {
	path, err := exec.LookPath("apt-get")
	if err != nil {
		return nil, fmt.Errorf("%w: apt-get is not on this machine", errNoPackage)
	}
	if os.Geteuid() == 0 {
		return []string{path}, nil
	}
	if exec.Command("sudo", "-n", "true").Run() == nil {
		return []string{"sudo", "-n", "DEBIAN_FRONTEND=noninteractive", path}, nil
	}
	return nil, fmt.Errorf("%w: run it as root, or with a sudo that asks for no password", errNoPackage)
}

// clusterConf tells Debian's scripts not to make and start a cluster when
// PostgreSQL is installed: the tests start theirs, and port 5432 is not ours.
const clusterConf = "/etc/postgresql-common/createcluster.d/lethe-testdeps.conf"

// withoutCluster runs install with clusterConf in place. Without root it
// cannot be written; sudo's tee can.
func withoutCluster(ctx context.Context, install func() error) error {
	const text = "create_main_cluster = false\n"
	if os.Geteuid() != 0 {
		if err := run1(ctx, "sudo", "-n", "sh", "-c",
			"mkdir -p "+filepath.Dir(clusterConf)+" && echo '"+strings.TrimSpace(text)+"' > "+clusterConf); err != nil {
			return err
		}
		return errors.Join(install(), run1(ctx, "sudo", "-n", "rm", "-f", clusterConf))
	}
	if err := os.MkdirAll(filepath.Dir(clusterConf), 0o755); err != nil {
		return fmt.Errorf("keeping the package from starting a cluster: %w", err)
	}
	if err := os.WriteFile(clusterConf, []byte(text), 0o644); err != nil {
		return fmt.Errorf("keeping the package from starting a cluster: %w", err)
	}
	return errors.Join(install(), os.Remove(clusterConf))
}
