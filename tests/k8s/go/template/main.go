// template FILE KEY=VALUE...: what Helm's engine makes of a chart's template, on standard output. A key with a dot (env.A=1) is a key in a map.
package main

import (
	"fmt"
	"os"
	"strings"
	"text/template"
)

func main() {
	values := map[string]interface{}{"env": map[string]interface{}{}}
	for _, pair := range os.Args[2:] {
		key, value, _ := strings.Cut(pair, "=")
		if name, inner, nested := strings.Cut(key, "."); nested {
			values[name].(map[string]interface{})[inner] = value
		} else {
			values[key] = value
		}
	}
	t, err := template.New("meshnet.yaml").Option("missingkey=error").ParseFiles(os.Args[1])
	if err == nil {
		t = t.Lookup("meshnet.yaml")
		err = t.Execute(os.Stdout, map[string]interface{}{"Values": values})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
