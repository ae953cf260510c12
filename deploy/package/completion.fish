function __complete_nomad_driver_vault
    set -lx COMP_LINE (commandline -cp)
    test -z (commandline -ct); and set COMP_LINE "$COMP_LINE "
    /usr/bin/nomad-driver-vault
end
complete -f -c nomad-driver-vault -a "(__complete_nomad_driver_vault)"
