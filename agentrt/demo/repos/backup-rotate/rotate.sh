#!/bin/sh
# rotate.sh DIR KEEP: delete all but the KEEP newest *.bak files of DIR.
dir=$1
keep=$2
cd $dir
for file in $(ls *.bak | sort -r | tail -n $keep); do
    rm $file
done
