package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"lethe/internal/testenv"
)

func haveGCC() bool {
	_, err := exec.LookPath("gcc")
	return err == nil
}

// installGCC gets what `go test -race` links with.
func installGCC(ctx context.Context) error {
	return errors.Join(aptInstall(ctx, "gcc"), aptInstall(ctx, "libc6-dev"))
}

func haveSystemd() bool {
	_, err := exec.LookPath("systemd-analyze")
	return err == nil
}

func installSystemd(ctx context.Context) error { return aptInstall(ctx, "systemd") }

func havePostgres(version int) func() bool {
	return func() bool {
		_, err := testenv.PostgresBin(version)
		return err == nil
	}
}

// installPostgres15 takes the distribution's package, which has all tools, and
// elsewhere the embedded binaries.
func installPostgres15(ctx context.Context) error {
	err := withPackage(ctx, "postgresql-15")
	if !errors.Is(err, errNoPackage) {
		return err
	}
	say("%v: taking the embedded binaries", err)
	return installEmbedded(ctx, 15, testenv.Postgres15Version)
}

func withPackage(ctx context.Context, name string) error {
	if _, err := aptGet(); err != nil {
		return err
	}
	return withoutCluster(ctx, func() error { return aptInstall(ctx, name) })
}

func installPostgres18(ctx context.Context) error {
	return installEmbedded(ctx, 18, testenv.Postgres18Version)
}

// embeddedSums pins the archives by version and platform. Maven compares a
// download with a checksum from the same place; this one is ours.
var embeddedSums = map[string]string{
	"15.15.0 linux-amd64":   "7c73da91870b0615b37a8ceb84871bd42f28c3600f87a97ca9747f4a0b8d2dbb",
	"15.15.0 linux-arm64v8": "623ee4c35cfdccd585d4473ff9b51942d465a7f8280687e6b960f56066f58909",
	"18.1.0 linux-amd64":    "65d0723e0274ad3ec6230dcbdfe034af6ee096fce15a77b0f9b8be71d2702934",
	"18.1.0 linux-arm64v8":  "ea0f16b754fc0a10d9d8993bbd426c20f8c709b318b28e49b42d9cac1c958b8f",
}

// installEmbedded puts PostgreSQL's binaries from the Maven artifact
// io.zonky.test.postgres into the cache: a jar that holds a .txz.
func installEmbedded(ctx context.Context, version int, release string) error {
	platform := runtime.GOOS + "-" + strings.Replace(runtime.GOARCH, "arm64", "arm64v8", 1)
	sum, ok := embeddedSums[release+" "+platform]
	if !ok {
		return fmt.Errorf("no binaries of PostgreSQL %d are known for %s: install it so that postgres and initdb are where internal/testenv looks", version, platform)
	}
	if err := needTool(ctx, "xz", "xz-utils"); err != nil {
		return err
	}
	if err := needMaven(ctx); err != nil {
		return err
	}
	say("fetching PostgreSQL %s", release)
	return publish(testenv.PostgresCache(version), func(dir string) error {
		artifact := "embedded-postgres-binaries-" + platform
		if err := maven(ctx, "copy", "-Dartifact=io.zonky.test.postgres:"+artifact+":"+release+":jar", "-DoutputDirectory="+dir); err != nil {
			return err
		}
		jar := filepath.Join(dir, artifact+"-"+release+".jar")
		txz := filepath.Join(dir, "postgres.txz")
		if err := verify(jar, sum); err != nil {
			return err
		}
		if err := unzip1(jar, ".txz", txz); err != nil {
			return err
		}
		if err := run1(ctx, "tar", "-xJf", txz, "-C", dir, "--no-same-owner"); err != nil {
			return err
		}
		return errors.Join(os.Remove(jar), os.Remove(txz))
	})
}

func haveKafka() bool {
	_, err := testenv.KafkaLibs()
	return err == nil && haveJava()
}

//go:embed kafka-pom.xml
var kafkaPOM string

// installKafka gets Java where it is missing, and the broker with everything
// it depends on into one folder of the cache.
func installKafka(ctx context.Context) error {
	if !haveJava() {
		if err := aptInstall(ctx, "openjdk-17-jre-headless", "openjdk-21-jre-headless", "default-jre-headless"); err != nil {
			return fmt.Errorf("getting Java 17 or later: %w", err)
		}
		if !haveJava() {
			return errors.New("getting Java 17 or later: the java on PATH, or that of JAVA_HOME, is older")
		}
	}
	if _, err := testenv.KafkaLibs(); err == nil {
		return nil
	}
	if err := needMaven(ctx); err != nil {
		return err
	}
	say("fetching Apache Kafka %s", testenv.KafkaVersion)
	return publish(testenv.KafkaCache(), func(dir string) error {
		pom := filepath.Join(dir, "pom.xml")
		text := strings.ReplaceAll(kafkaPOM, "@KAFKA@", testenv.KafkaVersion)
		if err := os.WriteFile(pom, []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", pom, err)
		}
		return maven(ctx, "copy-dependencies", "-f", pom, "-DincludeScope=runtime", "-DoutputDirectory="+dir)
	})
}

var javaVersion = regexp.MustCompile(`version "(\d+)`)

// haveJava reports whether there is a Java that Kafka 4 runs on (17 or later).
func haveJava() bool {
	java, err := testenv.Java()
	if err != nil {
		return false
	}
	out, err := exec.Command(java, "-version").CombinedOutput()
	if err != nil {
		return false
	}
	m := javaVersion.FindSubmatch(out)
	if m == nil {
		return false
	}
	major, err := strconv.Atoi(string(m[1]))
	return err == nil && major >= 17
}

// needTool installs a package when its command is not on PATH.
func needTool(ctx context.Context, command, pkg string) error {
	if _, err := exec.LookPath(command); err == nil {
		return nil
	}
	if err := aptInstall(ctx, pkg); err != nil {
		return fmt.Errorf("getting %s: %w", command, err)
	}
	return nil
}

func needMaven(ctx context.Context) error { return needTool(ctx, "mvn", "maven") }

// maven runs one goal of the dependency plugin, in a version that every Maven
// since 3.1 takes.
func maven(ctx context.Context, goal string, args ...string) error {
	return run1(ctx, "mvn", append([]string{"-B", "-q", "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:" + goal}, args...)...)
}
