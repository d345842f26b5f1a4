package testenv

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// The versions that are tested against and that testdeps installs.
const (
	KafkaVersion      = "4.1.0"   // Apache Kafka
	Postgres15Version = "15.15.0" // embedded binaries, where the distribution has no package
	Postgres18Version = "18.1.0"  // embedded binaries
)

// fallbackCache is used where the cache folder of the user's home is closed to
// the uid that PostgreSQL runs under, as /root is.
const fallbackCache = "/var/tmp/lethe-cache"

// CacheDir returns the folder that installed servers and prepared database
// clusters are kept in: $LETHE_TEST_CACHE, or lethe in the user's cache folder,
// or a folder in /var/tmp where that is closed to the servers' uid.
func CacheDir() string {
	if dir := os.Getenv("LETHE_TEST_CACHE"); dir != "" && reachable(dir) {
		return dir
	}
	if base, err := os.UserCacheDir(); err == nil {
		if dir := filepath.Join(base, "lethe"); reachable(dir) {
			return dir
		}
	}
	return fallbackCache
}

// PrepareCache makes the cache folder and returns it. It refuses a folder that
// belongs to somebody else: what lies in there is executed.
func PrepareCache() (string, error) {
	dir := CacheDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making cache folder (set LETHE_TEST_CACHE to one that this user can write): %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("looking at cache folder: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return "", fmt.Errorf("cache folder %s belongs to uid %d: set LETHE_TEST_CACHE to a folder of your own", dir, st.Uid)
	}
	return dir, nil
}

// reachable reports whether the servers' uid can get to path: always when it
// is our own, else when every existing folder on the way lets others through.
func reachable(path string) bool {
	if uid, _ := serverID(); uid == os.Geteuid() {
		return true
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil || info.Mode().Perm()&0o001 == 0:
			return false
		}
		if path == filepath.Dir(path) {
			return true
		}
		path = filepath.Dir(path)
	}
}

// PostgresCache returns the folder in the cache where testdeps puts the
// binaries of a major version that the distribution does not have.
func PostgresCache(version int) string {
	return filepath.Join(CacheDir(), fmt.Sprintf("postgres-%d", version))
}

// KafkaCache returns the folder in the cache where testdeps puts Kafka's jars.
func KafkaCache() string {
	return filepath.Join(CacheDir(), "kafka-"+KafkaVersion)
}

// PostgresBin returns the folder that holds postgres and initdb of a major
// version. PATH is not asked: what lies there first may be any version.
func PostgresBin(version int) (string, error) {
	v := strconv.Itoa(version)
	for _, dir := range []string{
		"/usr/lib/postgresql/" + v + "/bin", // Debian, Ubuntu
		"/usr/pgsql-" + v + "/bin",          // Fedora, Red Hat
		"/opt/homebrew/opt/postgresql@" + v + "/bin",
		filepath.Join(PostgresCache(version), "bin"),
	} {
		if isFile(filepath.Join(dir, "postgres")) && isFile(filepath.Join(dir, "initdb")) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("PostgreSQL %d: %w", version, ErrMissing)
}

// MySQLLinker is the dynamic linker in the folder lib of a server's tree.
const MySQLLinker = "ld.so"

// mysqlServers are the programs of the flavors, in the folder bin of a tree.
var mysqlServers = map[string]string{MariaDB: "mariadbd", MySQLServer: "mysqld"}

// MySQLCache returns the folder in the cache where testdeps puts a flavor's
// server, MariaDB or MySQLServer, with the libraries that it needs.
func MySQLCache(flavor string) string {
	return filepath.Join(CacheDir(), map[string]string{MariaDB: "mariadb", MySQLServer: "mysql-9"}[flavor])
}

// MySQLTree returns the folder that holds a flavor's server: bin, lib, share
// and plugin.
func MySQLTree(flavor string) (string, error) {
	name := mysqlServers[flavor]
	if name == "" {
		return "", fmt.Errorf("finding a server: no flavor is called %q", flavor)
	}
	dir := MySQLCache(flavor)
	if !isFile(filepath.Join(dir, "bin", name)) || !isFile(filepath.Join(dir, "lib", MySQLLinker)) {
		return "", fmt.Errorf("%s: %w", mysqlTitles[flavor], ErrMissing)
	}
	return dir, nil
}

// KafkaLibs returns the folder that holds Kafka's jars.
func KafkaLibs() (string, error) {
	dir := KafkaCache()
	if !isFile(filepath.Join(dir, "kafka_2.13-"+KafkaVersion+".jar")) {
		return "", fmt.Errorf("Apache Kafka %s: %w", KafkaVersion, ErrMissing)
	}
	return dir, nil
}

// Java returns the java command: that of JAVA_HOME, or the one on PATH.
func Java() (string, error) {
	if home := os.Getenv("JAVA_HOME"); home != "" {
		if java := filepath.Join(home, "bin", "java"); isFile(java) {
			return java, nil
		}
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return "", fmt.Errorf("Java 17 or later: %w", ErrMissing)
	}
	return java, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
