package main

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lethe/internal/testenv"
)

// A server that would get in the way of one that the machine has already, or
// that the distribution's release lacks, is not installed: its packages are
// unpacked, and the server is put into the cache with the libraries that it
// asks for and its own dynamic linker (testenv.MySQLTree). That takes no root,
// no container and no maintainer script, and starts no service.

// tree says what is taken out of a server's packages.
type tree struct {
	pkg    string
	server string            // in the unpacked packages, without folder
	share  []string          // patterns, in usr/share/mysql or usr/share/mariadb
	target string            // folder of the cache
	config map[string]string // of apt, beside the machine's own
}

func haveMySQL(flavor string) func() bool {
	return func() bool {
		_, err := testenv.MySQLTree(flavor)
		return err == nil
	}
}

// installMariaDB takes the package of the machine's own release.
func installMariaDB(ctx context.Context) error {
	updateLists(ctx)
	return installTree(ctx, tree{
		pkg: "mariadb-server-core", server: "mariadbd", target: testenv.MySQLCache(testenv.MariaDB),
		share: []string{
			"charsets", "english", "*_system_tables.sql", "*_performance_tables.sql", "*_system_tables_data.sql", "*_sys_schema.sql",
			"maria_add_gis_sp_bootstrap.sql",
		},
	})
}

// installMySQL takes the package of Debian's development release, the only
// place that has MySQL 9, from the mirror that the machine uses already. The
// libraries come with it, so it does not matter how old the machine's own are.
func installMySQL(ctx context.Context) error {
	updateLists(ctx) // apt names no mirror that it has no lists of
	mirrors, err := debianMirrors(ctx)
	if err != nil {
		return err
	}
	lists, err := os.MkdirTemp("", "lethe-testdeps-")
	if err != nil {
		return fmt.Errorf("making folder for package lists: %w", err)
	}
	defer os.RemoveAll(lists)
	if err := os.MkdirAll(filepath.Join(lists, "lists", "partial"), 0o755); err != nil {
		return fmt.Errorf("making folder for package lists: %w", err)
	}
	sources := filepath.Join(lists, "sources.list")
	config := map[string]string{
		"Dir::State":                 lists,
		"Dir::Etc::sourcelist":       sources,
		"Dir::Etc::sourceparts":      os.DevNull,
		"Dir::Etc::preferences":      os.DevNull,
		"Dir::Etc::preferencesparts": os.DevNull,
		"Acquire::Languages":         "none",
		"Acquire::Retries":           "2",
	}
	var errs []error
	for _, mirror := range mirrors {
		if err := os.WriteFile(sources, []byte(sourceLine(mirror)), 0o644); err != nil {
			return fmt.Errorf("naming the mirror: %w", err)
		}
		say("asking the machine's mirror for Debian's development release")
		err := apt(ctx, config, "update", "-qq", "--error-on=any")
		if err == nil {
			err = installTree(ctx, tree{
				pkg: "mysql-server-core", server: "mysqld", target: testenv.MySQLCache(testenv.MySQLServer), config: config,
				share: []string{"charsets", "english"},
			})
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// debianKeys sign every release of Debian; the package is a part of apt there.
const debianKeys = "/usr/share/keyrings/debian-archive-keyring.gpg"

func sourceLine(mirror string) string {
	options := ""
	if _, err := os.Stat(debianKeys); err == nil {
		options = "[signed-by=" + debianKeys + "] "
	}
	return "deb " + options + mirror + " sid main\n"
}

// debianMirrors returns where the machine's apt gets Debian's packages from.
// Every mirror has them in a folder of this name, or is a list of such.
func debianMirrors(ctx context.Context) ([]string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fmt.Errorf("%w: apt-get is not on this machine", errNoPackage)
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return nil, fmt.Errorf("asking apt for its mirrors: %w", err)
	}
	var mirrors []string
	for uri := range strings.FieldsSeq(string(out)) {
		name := path.Base(uri)
		if (name == "debian" || name == "debian.list") && !slices.Contains(mirrors, uri) {
			mirrors = append(mirrors, uri)
		}
	}
	if len(mirrors) == 0 {
		return nil, fmt.Errorf("%w: apt has no mirror of Debian on this machine", errNoPackage)
	}
	return mirrors, nil
}

// apt runs apt-get with settings beside those of the machine, and with its
// downloads as ourselves: the folders are not open to its own user.
func apt(ctx context.Context, config map[string]string, args ...string) error {
	options := []string{"-o", "APT::Sandbox::User=root"}
	for name, value := range config {
		options = append(options, "-o", name+"="+value)
	}
	return run1(ctx, "apt-get", slices.Concat(options, args)...)
}

// installTree downloads a package with everything that it depends on, down to
// the C library, and publishes the parts of it that a server needs.
func installTree(ctx context.Context, t tree) error {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: %s is not on this machine", errNoPackage, tool)
		}
	}
	say("fetching package %s", t.pkg)
	return publish(t.target, func(dir string) error {
		work := filepath.Join(dir, "tmp")
		archives, root := filepath.Join(work, "archives"), filepath.Join(work, "root")
		status := filepath.Join(work, "status") // as if nothing were installed
		for _, d := range []string{filepath.Join(archives, "partial"), root} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return fmt.Errorf("making folder in the cache: %w", err)
			}
		}
		if err := os.WriteFile(status, nil, 0o644); err != nil {
			return fmt.Errorf("making folder in the cache: %w", err)
		}
		config := map[string]string{
			"Dir::State::status": status, "Dir::Cache": work, "Dir::Cache::archives": archives,
			"Debug::NoLocking": "true", "APT::Install-Recommends": "false",
		}
		for name, value := range t.config {
			config[name] = value
		}
		if err := apt(ctx, config, "install", "-y", "-qq", "--download-only", t.pkg); err != nil {
			return err
		}
		debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
		if err != nil {
			return fmt.Errorf("finding the packages: %w", err)
		}
		for _, deb := range debs {
			if err := run1(ctx, "dpkg-deb", "-x", deb, root); err != nil {
				return err
			}
		}
		if err := t.collect(root, dir); err != nil {
			return err
		}
		return os.RemoveAll(work)
	})
}

// collect moves the server, its libraries and its messages out of the
// unpacked packages.
func (t tree) collect(root, dir string) error {
	for _, d := range []string{"bin", "lib", "share", "plugin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("making folder in the cache: %w", err)
		}
	}
	server := filepath.Join(dir, "bin", t.server)
	if err := os.Rename(filepath.Join(root, "usr", "sbin", t.server), server); err != nil {
		return fmt.Errorf("finding the server: %w", err)
	}
	for _, pattern := range t.share {
		var found []string
		for _, folder := range []string{"mysql", "mariadb"} { // the latter since MariaDB 11
			more, err := filepath.Glob(filepath.Join(root, "usr", "share", folder, pattern))
			if err != nil {
				return fmt.Errorf("finding what the server reads: %w", err)
			}
			found = append(found, more...)
		}
		if len(found) != 1 {
			return fmt.Errorf("finding what the server reads: %d files are called %s", len(found), pattern)
		}
		if err := os.Rename(found[0], filepath.Join(dir, "share", filepath.Base(found[0]))); err != nil {
			return fmt.Errorf("moving what the server reads: %w", err)
		}
	}
	libs, err := libraries(root)
	if err != nil {
		return err
	}
	linker, needed, err := needs(server)
	if err != nil {
		return err
	}
	if err := moveLibrary(libs, linker, filepath.Join(dir, "lib", testenv.MySQLLinker)); err != nil {
		return err
	}
	for done := map[string]bool{linker: true}; len(needed) > 0; {
		name := needed[0]
		needed = needed[1:]
		if done[name] {
			continue
		}
		done[name] = true
		to := filepath.Join(dir, "lib", name)
		if err := moveLibrary(libs, name, to); err != nil {
			return err
		}
		_, more, err := needs(to)
		if err != nil {
			return err
		}
		needed = append(needed, more...)
	}
	return nil
}

// moveLibrary moves the file behind a library's name.
func moveLibrary(libs map[string]string, name, to string) error {
	from, ok := libs[name]
	if !ok {
		return fmt.Errorf("finding libraries: no %s in the packages", name)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("moving library: %w", err)
	}
	return nil
}

// libraries returns the shared libraries below root by the names that they
// have there, links included.
func libraries(root string) (map[string]string, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, fmt.Errorf("looking for libraries: %w", err)
	}
	libs := map[string]string{}
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(d.Name(), ".so") {
			return err
		}
		real := file
		if d.Type()&fs.ModeSymlink != 0 {
			if real, err = filepath.EvalSymlinks(file); err != nil {
				return nil //nolint:nilerr // a link out of the packages: the real one is somewhere else
			}
		}
		if strings.HasPrefix(real, root) && libs[d.Name()] == "" {
			libs[d.Name()] = real
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for libraries: %w", err)
	}
	return libs, nil
}

// needs returns the dynamic linker and the libraries that a program or a
// library asks for, by name.
func needs(file string) (linker string, libs []string, err error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", nil, fmt.Errorf("asking %s for its libraries: %w", filepath.Base(file), err)
	}
	defer f.Close()
	if libs, err = f.ImportedLibraries(); err != nil {
		return "", nil, fmt.Errorf("asking %s for its libraries: %w", filepath.Base(file), err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return "", nil, fmt.Errorf("asking %s for its linker: %w", filepath.Base(file), err)
		}
		linker = path.Base(string(bytes.TrimRight(name, "\x00")))
	}
	return linker, libs, nil
}
