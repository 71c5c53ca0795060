#!/usr/bin/env python3
"""Packs folders into an image archive, without a daemon: the same files give the same bytes.

The archive is an OCI layout (`ctr images import`, `podman load`, `skopeo copy oci-archive:`) that also has the
manifest.json of `docker load`. One layer for each architecture: all files as root's, all times the epoch, sorted.
"""
import argparse
import hashlib
import io
import json
import os
import tarfile

EPOCH = '1970-01-01T00:00:00Z'
OCI = 'application/vnd.oci.image.'


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('out', help='the archive to write')
    p.add_argument('names', help='NAME:TAG in full, as a manifest asks for it; several with commas')
    p.add_argument('roots', nargs='+', metavar='[ARCH=]PATH', help='the root folder, or one static program; ARCH is amd64 unless said')
    p.add_argument('--entrypoint', default='', help='words, with commas')
    p.add_argument('--cmd', default='', help='words, with commas')
    p.add_argument('--env', action='append', default=[], metavar='K=V')
    p.add_argument('--label', action='append', default=[], metavar='K=V')
    return p.parse_args()


def entry(info):
    info.uid = info.gid = 0
    info.uname = info.gname = ''
    info.mtime = 0
    return info


def layer(root):
    """The uncompressed tar of a folder, or of one program."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', format=tarfile.PAX_FORMAT) as tar:
        paths = [(os.path.basename(root), root)]
        if os.path.isdir(root):
            paths = []
            for folder, folders, files in os.walk(root):
                paths += [(os.path.relpath(os.path.join(folder, n), root), os.path.join(folder, n)) for n in folders + files]
        for name, path in sorted(paths):
            tar.inodes = {}  # two names of one file are two files: how this machine links them is no input
            info = entry(tar.gettarinfo(path, name))
            if info.isreg():
                with open(path, 'rb') as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    return buffer.getvalue()


class Archive:
    def __init__(self):
        self.files = {'oci-layout': json.dumps({'imageLayoutVersion': '1.0.0'}).encode()}

    def blob(self, kind, content):
        if not isinstance(content, bytes):
            content = json.dumps(content, sort_keys=True, separators=(',', ':')).encode()
        digest = hashlib.sha256(content).hexdigest()
        self.files['blobs/sha256/' + digest] = content
        return {'mediaType': OCI + kind, 'digest': 'sha256:' + digest, 'size': len(content)}

    def write(self, path):
        partial = path + '.partial'
        with tarfile.open(partial, 'w', format=tarfile.PAX_FORMAT) as tar:
            for name, content in sorted(self.files.items()):
                info = entry(tarfile.TarInfo(name))
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
        os.rename(partial, path)


def path_of(descriptor):
    return 'blobs/' + descriptor['digest'].replace(':', '/')


def main():
    a = arguments()
    words = lambda text: text.split(',') if text else None
    pairs = lambda given: dict(x.split('=', 1) for x in given)
    archive, manifests, for_docker, total = Archive(), [], None, 0
    for root in a.roots:
        arch, _, path = root.rpartition('=')
        arch = arch or 'amd64'
        content = layer(path)
        total += len(content)
        entrypoint = words(a.entrypoint) or (None if os.path.isdir(path) else ['/' + os.path.basename(path)])
        config = {
            'architecture': arch, 'os': 'linux', 'created': EPOCH,
            'config': {'Env': ['PATH=/usr/sbin:/usr/bin:/sbin:/bin'] + a.env, 'Entrypoint': entrypoint, 'Cmd': words(a.cmd), 'Labels': pairs(a.label) or None},
            'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + hashlib.sha256(content).hexdigest()]},
            'history': [{'created': EPOCH, 'created_by': 'oci.py'}],
        }
        config['config'] = {k: v for k, v in config['config'].items() if v is not None}
        config, content = archive.blob('config.v1+json', config), archive.blob('layer.v1.tar', content)
        manifest = {'schemaVersion': 2, 'mediaType': OCI + 'manifest.v1+json', 'config': config, 'layers': [content]}
        manifests.append(dict(archive.blob('manifest.v1+json', manifest), platform={'architecture': arch, 'os': 'linux'}))
        for_docker = for_docker or {'Config': path_of(config), 'RepoTags': a.names.split(','), 'Layers': [path_of(content)]}
    if len(manifests) == 1:
        top = manifests[0]
    else:
        top = archive.blob('index.v1+json', {'schemaVersion': 2, 'mediaType': OCI + 'index.v1+json', 'manifests': manifests})
    named = [dict(top, annotations={'io.containerd.image.name': n, 'org.opencontainers.image.ref.name': n}) for n in a.names.split(',')]
    index = {'schemaVersion': 2, 'mediaType': OCI + 'index.v1+json', 'manifests': named}
    archive.files['index.json'] = json.dumps(index, sort_keys=True, separators=(',', ':')).encode()
    archive.files['manifest.json'] = json.dumps([for_docker], sort_keys=True, separators=(',', ':')).encode()
    archive.write(a.out)
    print(f'{a.out}: {a.names}, {total >> 10} KiB')


main()
