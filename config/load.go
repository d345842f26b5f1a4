package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Load reads and validates the file at path, secrets included. Relative file names in it are relative to its own folder.
// The error is a *Faults that lists everything that is wrong, unless the file itself cannot be read.
func Load(path string) (*Config, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("reading config: %w", err)
	}
	d := newDecoder()
	c := d.config(data, path)
	folder := filepath.Dir(path)
	for _, p := range d.paths {
		*p = absolute(folder, *p)
	}
	for _, s := range d.files {
		s.read(folder)
	}
	return d.result(c, path)
}

// Parse reads and validates data; name stands for the file in messages. It opens no file: secrets given as *_file stay
// unset and relative file names stay relative.
func Parse(data []byte, name string) (*Config, error) {
	d := newDecoder()
	return d.result(d.config(data, name), name)
}

func (d *decoder) result(c *Config, name string) (*Config, error) {
	if len(d.faults) > 0 {
		return nil, &Faults{File: name, List: sortFaults(d.faults)}
	}
	return c, nil
}

// config decodes everything, then checks what only the whole file can tell.
func (d *decoder) config(data []byte, name string) *Config {
	c := &Config{
		file: name, lines: d.lines,
		Kafka:  Kafka{TopicPrefix: "lethe", Partitions: 12, ReplicationFactor: 3},
		Source: Source{Heartbeat: 5 * time.Second},
		HTTP:   HTTP{Listen: "127.0.0.1:8480"},
	}
	root, ok := d.document(data)
	if !ok {
		return c
	}
	root.fields(map[string]func(item){
		"version": func(it item) {
			integer(&c.Version, 0, 1<<30)(it)
			if c.Version != 0 && c.Version != 1 {
				it.fault("this Lethe reads version 1", "version %d is not known", c.Version)
			}
		},
		"name": reader(&c.Name, parseCode),
		"keys": func(it item) {
			it.fields(map[string]func(item){"dir": it.d.file(&c.Keys.Dir)}, "dir: the folder of the keysets")
		},
		"locale":   c.decodeLocale,
		"kafka":    c.decodeKafka,
		"source":   c.Source.decode,
		"replicas": c.decodeReplicas,
		"ledger":   c.decodeLedger,
		"http":     func(it item) { it.fields(map[string]func(item){"listen": reader(&c.HTTP.Listen, parseListen)}) },
	}, "version: write version: 1", "name: it becomes part of every id and can never change", "keys: the keysets of lethe keys init",
		"kafka", "source", "replicas: name at least one")
	c.complete()
	v := validator{c: c, d: d}
	v.run()
	return c
}

// file reads the name of a file.
func (d *decoder) file(into *string) func(item) {
	return func(it item) {
		it.str(into)
		if *into != "" {
			d.paths = append(d.paths, into)
		}
	}
}

// secret reads the twins key and key_file. Both fields are functions of one section; the faults of giving both are found
// when the second one comes.
func (d *decoder) secret(into *Secret) (value, fromFile func(item)) {
	given := ""
	once := func(it item) bool {
		if given != "" {
			it.fault("keep one of the two, best the file", "is given together with %s", given)
			return false
		}
		given = it.path[strings.LastIndex(it.path, ".")+1:]
		return true
	}
	value = func(it item) {
		s, ok := it.text()
		if once(it) && ok {
			if s == "" {
				it.fault("give it a value, or remove the key", "is empty")
			}
			*into = NewSecret(s)
		}
	}
	fromFile = func(it item) {
		var name string
		it.str(&name)
		if once(it) && name != "" {
			d.files = append(d.files, secretFile{item: it, name: name, into: into})
		}
	}
	return value, fromFile
}

// maxSecret bounds a secret's file.
const maxSecret = 64 << 10

func (s secretFile) read(folder string) {
	value, hint, err := readSecret(absolute(folder, s.name))
	if err != nil {
		s.item.fault(hint, "%s", err)
		return
	}
	*s.into = NewSecret(value)
}

// ReadSecret reads the file of a secret that no config names, under the rules for those that one does: a regular file that
// nobody else can read. A line's end is cut off. The error tells the mend, and nothing of the content.
func ReadSecret(name string) (Secret, error) {
	value, hint, err := readSecret(name)
	switch {
	case err == nil:
		return NewSecret(value), nil
	case hint != "":
		return Secret{}, fmt.Errorf("%w: %s", err, hint)
	default:
		return Secret{}, err
	}
}

// readSecret reads a secret, refusing a file that others can read. hint says how to mend an error; it may be empty.
func readSecret(name string) (value, hint string, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", "", errors.New("cannot be read: " + plain(err))
	}
	refused := fs.FileMode(0o077)
	if credentials := os.Getenv("CREDENTIALS_DIRECTORY"); filepath.Dir(name) == "/run/credentials/lethe.service" || credentials != "" && filepath.Dir(name) == filepath.Clean(credentials) {
		// systemd gives the service's user access by an ACL, whose mask shows in the group's bits.
		refused = 0o007
	}
	switch {
	case !info.Mode().IsRegular():
		return "", "", fmt.Errorf("%s is no regular file", name)
	case info.Mode().Perm()&refused != 0:
		return "", "chmod 600 " + name, fmt.Errorf("%s can be read by others (mode %04o)", name, info.Mode().Perm())
	case info.Size() > maxSecret:
		return "", "", fmt.Errorf("%s is larger than %d bytes", name, maxSecret)
	}
	data, err := readBounded(name)
	if err != nil {
		return "", "", errors.New("cannot be read: " + plain(err))
	}
	value = strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if value == "" {
		return "", "write the secret into it", fmt.Errorf("%s is empty", name)
	}
	return value, "", nil
}

// plain reduces a file error to its file and reason.
func plain(err error) string {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Path + ": " + pathErr.Err.Error()
	}
	return err.Error()
}

func absolute(folder, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(folder, name)
}

// readBounded reads a file up to just past maxFile, which is enough for the caller to see that it is too large.
func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(f, maxFile+1)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
