package testenv

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// mysqlTemplate returns the prepared empty data of a flavor's server in the
// cache; to make them takes seconds of a core. Several processes may do so at
// once: the first rename wins.
func mysqlTemplate(ctx context.Context, flavor, tree string) (string, error) {
	cache, err := PrepareCache()
	if err != nil {
		return "", err
	}
	build, err := mysqlCommand(ctx, flavor, tree, "--no-defaults", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", mysqlTitles[flavor], err)
	}
	key := sha256.New()
	fmt.Fprintf(key, "%s\n%s\n%q\n%s\n", tree, build, mysqlInitArgs[flavor], mysqlRootSQL[flavor])
	template := filepath.Join(cache, flavor+"-data-"+hex.EncodeToString(key.Sum(nil)[:6]))
	if isFile(filepath.Join(template, "ibdata1")) {
		return template, nil
	}
	work, err := os.MkdirTemp(cache, "tmp-initdb-")
	if err != nil {
		return "", fmt.Errorf("making data: %w", err)
	}
	defer os.RemoveAll(work)
	fresh := filepath.Join(work, "data")
	cmd, err := mysqlInit(ctx, flavor, tree, work, fresh)
	if err != nil {
		return "", err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("making data: %w\n%s", err, out)
	}
	// Each server makes a uuid of its own where it finds none.
	if err := os.Remove(filepath.Join(fresh, "auto.cnf")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("making data: %w", err)
	}
	if err := os.Rename(fresh, template); err != nil && !errors.Is(err, fs.ErrExist) && !isFile(filepath.Join(template, "ibdata1")) {
		return "", fmt.Errorf("making data: %w", err)
	}
	return template, nil
}

// mysqlInitArgs make empty data, without waiting for the disk.
var mysqlInitArgs = map[string][]string{
	MariaDB: {
		"--bootstrap", "--innodb-flush-method=nosync", "--innodb-use-native-aio=OFF", "--innodb-log-file-size=32M",
		"--max-allowed-packet=8M", "--enforce-storage-engine=", "--log-warnings=0",
	},
	MySQLServer: {
		"--initialize-insecure", "--innodb-flush-method=nosync", "--innodb-use-native-aio=OFF", "--innodb-redo-log-capacity=32M",
		"--secure-file-priv=NULL", "--mysqlx=OFF",
	},
}

// mysqlRootSQL lets root in from 127.0.0.1, which is not called localhost by a
// server that resolves no names. MariaDB's bootstrap knows no accounts yet.
var mysqlRootSQL = map[string]string{
	MariaDB:     "INSERT INTO global_priv SELECT '%', User, Priv FROM global_priv WHERE User = 'root' AND Host = 'localhost';\n",
	MySQLServer: "CREATE USER root@'%' IDENTIFIED BY '';\nGRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\n",
}

// mysqlInit returns the command that makes empty data in the folder fresh,
// below work.
func mysqlInit(ctx context.Context, flavor, tree, work, fresh string) (*exec.Cmd, error) {
	if err := os.Chmod(work, 0o777); err != nil {
		return nil, fmt.Errorf("making data: %w", err)
	}
	args := []string{"--no-defaults", "--datadir=" + fresh, "--tmpdir=" + work}
	for name, value := range mysqlPaths(tree) {
		args = append(args, "--"+name+"="+value)
	}
	args = append(args, mysqlInitArgs[flavor]...)
	if flavor == MySQLServer {
		script := filepath.Join(work, "init.sql")
		if err := os.WriteFile(script, []byte(mysqlRootSQL[flavor]), 0o644); err != nil {
			return nil, fmt.Errorf("making data: %w", err)
		}
		return mysqlCommand(ctx, flavor, tree, append(args, "--init-file="+script)...), nil
	}
	// What mariadb-install-db does, without its shell script, which asks for
	// programs in places of its own.
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return nil, fmt.Errorf("making data: %w", err)
	}
	if uid, gid := serverID(); uid != os.Geteuid() {
		if err := os.Chown(fresh, uid, gid); err != nil {
			return nil, fmt.Errorf("making data: %w", err)
		}
	}
	sql := bytes.NewBufferString("CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL, @skip_auth_anonymous = 1;\n")
	for _, name := range []string{
		"*_system_tables.sql", "*_performance_tables.sql", "*_system_tables_data.sql", "maria_add_gis_sp_bootstrap.sql",
		"*_sys_schema.sql", // they begin with mysql_ or, since 11, with mariadb_
	} {
		found, err := filepath.Glob(filepath.Join(tree, "share", name))
		if err != nil || len(found) != 1 {
			return nil, fmt.Errorf("making data: %d scripts are called %s", len(found), name)
		}
		script, err := os.ReadFile(found[0])
		if err != nil {
			return nil, fmt.Errorf("making data: %w", err)
		}
		sql.Write(script)
	}
	sql.WriteString("USE mysql;\n" + mysqlRootSQL[flavor])
	cmd := mysqlCommand(ctx, flavor, tree, args...)
	cmd.Stdin = sql
	return cmd, nil
}
