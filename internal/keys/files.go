package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
)

// checkDir refuses a folder into which somebody else can put a keyset of theirs.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("opening key folder: %w: run `lethe keys init`", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("opening key folder: %s is not a folder", dir)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("key folder %s can be written by others (mode %04o): chmod 700 %s", dir, mode, dir)
	}
	return nil
}

func path(dir, name string) string { return filepath.Join(dir, name+fileSuffix) }

// load reads one keyset. What is wrong inside a file is not repeated: it may be key material.
func load(dir, name string) (*keyset.Handle, error) {
	k, _, err := parseName(name)
	if err != nil {
		return nil, err
	}
	data, err := readFile(path(dir, name), k != kindPublic)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	reader := keyset.NewJSONReader(bytes.NewReader(data))
	var h *keyset.Handle
	if k == kindPublic {
		h, err = keyset.ReadWithNoSecrets(reader)
	} else {
		h, err = insecurecleartextkeyset.Read(reader)
	}
	if err != nil {
		return nil, fmt.Errorf("reading keyset %s: not a clear-text Tink keyset in JSON", path(dir, name))
	}
	return h, nil
}

// readFile checks the mode of the file that it has open, not of a name that may be another file by then.
func readFile(file string, secret bool) (data []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("opening keyset: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening keyset: %w", err)
	}
	if mode := info.Mode().Perm(); secret && mode&0o077 != 0 {
		return nil, fmt.Errorf("keyset %s can be read by others (mode %04o): chmod 600 %s", file, mode, file)
	}
	if data, err = io.ReadAll(io.LimitReader(f, 1<<20)); err != nil {
		return nil, fmt.Errorf("reading keyset %s: %w", file, err)
	}
	return data, nil
}

// store writes a keyset so that a crash leaves the old file or the new one. With create an existing file is never touched.
func store(dir, name string, h *keyset.Handle, create bool) error {
	k, _, err := parseName(name)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	defer func() { clear(buf.Bytes()) }()
	if k == kindPublic {
		err = h.WriteWithNoSecrets(keyset.NewJSONWriter(&buf))
	} else {
		err = insecurecleartextkeyset.Write(h, keyset.NewJSONWriter(&buf))
	}
	if err != nil {
		return fmt.Errorf("encoding keyset %s: %w", name, err)
	}
	if err := writeFile(path(dir, name), buf.Bytes(), create); err != nil {
		return fmt.Errorf("writing keyset %s: %w", path(dir, name), err)
	}
	return nil
}

func writeFile(file string, data []byte, create bool) error {
	dir := filepath.Dir(file)
	tmp, err := os.CreateTemp(dir, ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if create {
		err = os.Link(tmp.Name(), file) // fails where the file exists; a rename would replace it
	} else {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// names lists the keysets in dir, sorted. Other files are none of ours.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing key folder: %w", err)
	}
	var out []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), fileSuffix)
		if _, _, err := parseName(name); ok && err == nil {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out, nil
}

func exists(dir, name string) (bool, error) {
	_, err := os.Lstat(path(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
