// Drives plugins as container runtimes do: by libcni, with a list of plugins from a directory of configurations.
//
//	driver add|check|del|validate CONFDIR CACHEDIR CONTAINER NETNS IFNAME [CAPABILITIES as JSON]
//
// Plugins are found in CNI_PATH. The result goes to standard output, an error to standard error with exit 1.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) < 6 {
		return fmt.Errorf("usage: driver VERB CONFDIR CACHEDIR CONTAINER NETNS IFNAME [CAPABILITIES]")
	}
	files, err := libcni.ConfFiles(arguments[1], []string{".conflist"})
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no configuration in %s: %v", arguments[1], err)
	}
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		return err
	}
	plugins := libcni.NewCNIConfigWithCacheDir(filepath.SplitList(os.Getenv("CNI_PATH")), arguments[2], nil)
	capabilities := map[string]interface{}{}
	if len(arguments) > 6 {
		if err := json.Unmarshal([]byte(arguments[6]), &capabilities); err != nil {
			return err
		}
	}
	runtime := &libcni.RuntimeConf{
		ContainerID:    arguments[3],
		NetNS:          arguments[4],
		IfName:         arguments[5],
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", arguments[3]}},
		CapabilityArgs: capabilities,
	}
	ctx := context.Background()
	switch arguments[0] {
	case "add":
		result, err := plugins.AddNetworkList(ctx, list, runtime)
		if err != nil {
			return err
		}
		return result.PrintTo(os.Stdout)
	case "check":
		return plugins.CheckNetworkList(ctx, list, runtime)
	case "del":
		return plugins.DelNetworkList(ctx, list, runtime)
	case "validate":
		known, err := plugins.ValidateNetworkList(ctx, list)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(known)
	}
	return fmt.Errorf("no such verb: %s", arguments[0])
}
