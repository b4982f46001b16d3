# fish completion for shardnet, made by `shardnet completion fish`
function __shardnet_words -d 'the words typed so far, without options; with --lab, the value of that option'
    set -l lab
    set -l words
    for word in (commandline -opc)[2..-1]
        if test "$lab" = next
            set lab $word
        else if contains -- $word -l --lab
            set lab next
        else if not string match -q -- '-*' $word
            set -a words $word
        end
    end
    if test "$argv" = --lab
        set words $lab
    end
    string join \n -- $words
end
function __shardnet_at
    set -l words (__shardnet_words)
    set -l count (count $argv)
    test (count $words) -ge $count; and test "$words[1..$count]" = "$argv"
end
function __shardnet_just
    test "$(__shardnet_words)" = "$argv"
end
function __shardnet_ask
    set -l lab (__shardnet_words --lab)
    shardnet _complete --lab=$lab $argv 2>/dev/null
end
complete -c shardnet -n __shardnet_just -f -l version -s V -d 'print the version'
complete -c shardnet -n __shardnet_just -f -l lab -s l -r -a '(__shardnet_ask labs)' -d 'the lab'
complete -c shardnet -n __shardnet_just -f -a capture -d 'Write the frames that pass some ports, both ways, as pcapng'
complete -c shardnet -n '__shardnet_at capture' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at capture' -s w -l write -r -F -d 'where to, - is standard output [default: -]'
complete -c shardnet -n '__shardnet_at capture' -s s -l snaplen -r -f -d 'keep at most so much of a frame'
complete -c shardnet -n '__shardnet_at capture' -s q -l quiet -f -d 'say nothing at the end'
complete -c shardnet -n '__shardnet_at capture' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at capture' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a check -d 'Check a lab file, start nothing'
complete -c shardnet -n '__shardnet_at check' -s c -l config -r -F -d 'the lab file, as start takes it'
complete -c shardnet -n '__shardnet_at check' -l netdev -r -f -d 'a port as QEMU'\''s -netdev says it, beside those of the file'
complete -c shardnet -n '__shardnet_at check' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at check' -s q -l quiet -f -d 'print mistakes only'
complete -c shardnet -n '__shardnet_at check' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at check' -F
complete -c shardnet -n __shardnet_just -f -a completion -d 'Print the completion script of a shell'
complete -c shardnet -n '__shardnet_at completion' -f -a 'bash zsh fish'
complete -c shardnet -n __shardnet_just -f -a doctor -d 'Look at this machine: what of shardnet works here, what does not, and what to do about it'
complete -c shardnet -n '__shardnet_at doctor' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at doctor' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at doctor' -s q -l quiet -f -d 'say nothing of what is in order'
complete -c shardnet -n '__shardnet_at doctor' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a drops -d 'Show the frames that were refused, by port and cause'
complete -c shardnet -n '__shardnet_at drops' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at drops' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at drops' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at drops' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at drops' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a events -d 'Print what happens in a lab, a line each, until it ends'
complete -c shardnet -n '__shardnet_at events' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at events' -l since -r -f -d 'first what happened in the last SECONDS'
complete -c shardnet -n '__shardnet_at events' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at events' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a exec -d 'Run a command in a network namespace of its own that is plugged into the lab'
complete -c shardnet -n '__shardnet_at exec' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at exec' -l address -r -f -d 'an address with its prefix, 10.0.2.100/24 or fd00::1/64'
complete -c shardnet -n '__shardnet_at exec' -l route -r -f -d 'the address of a default gateway, or NETWORK=GATEWAY'
complete -c shardnet -n '__shardnet_at exec' -l mac -r -f -d 'the interface'\''s Ethernet address'
complete -c shardnet -n '__shardnet_at exec' -l mtu -r -f -d 'the interface'\''s largest packet'
complete -c shardnet -n '__shardnet_at exec' -l ifname -r -f -d 'what the interface is called [default: eth0]'
complete -c shardnet -n '__shardnet_at exec' -l switch -r -f -a '(__shardnet_ask switches)' -d 'the switch to be on'
complete -c shardnet -n '__shardnet_at exec' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at exec' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a fdb -d 'Show the addresses that the switches have learned, or forget them'
complete -c shardnet -n '__shardnet_at fdb' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at fdb' -l flush -f -d 'forget the addresses, print how many there were'
complete -c shardnet -n '__shardnet_at fdb' -l port -r -f -a '(__shardnet_ask ports)' -d 'only those behind this port'
complete -c shardnet -n '__shardnet_at fdb' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at fdb' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at fdb' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at fdb' -f -a '(__shardnet_ask switches)'
complete -c shardnet -n __shardnet_just -f -a flows -d 'Show the conversations that a user-mode network carries'
complete -c shardnet -n '__shardnet_at flows' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at flows' -l protocol -r -f -d 'only tcp, udp or icmp'
complete -c shardnet -n '__shardnet_at flows' -l state -r -f -d 'only those in this state, such as established'
complete -c shardnet -n '__shardnet_at flows' -l guest -r -f -d 'only those of this guest: 10.0.2.15, or 10.0.2.15:22'
complete -c shardnet -n '__shardnet_at flows' -l far -r -f -d 'only those with this far end: an address, with a port or not'
complete -c shardnet -n '__shardnet_at flows' -l direction -r -f -d 'only those that guests opened (out), or that came by hostfwd (in)'
complete -c shardnet -n '__shardnet_at flows' -l idle -r -f -d 'only those silent for so long'
complete -c shardnet -n '__shardnet_at flows' -s n -l limit -r -f -d 'at most so many'
complete -c shardnet -n '__shardnet_at flows' -l count -f -d 'print how many there are, and nothing else'
complete -c shardnet -n '__shardnet_at flows' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at flows' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at flows' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at flows' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a forward -d 'Show, add or remove what a user-mode network forwards, while it carries on'
complete -c shardnet -n '__shardnet_at forward' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at forward' -s p -l port -r -f -a '(__shardnet_ask ports)' -d 'the network, where the lab has several'
complete -c shardnet -n '__shardnet_at forward' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at forward' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at forward' -s q -l quiet -f -d 'print nothing of what was done'
complete -c shardnet -n '__shardnet_at forward' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_just forward' -f -a 'list add remove'
complete -c shardnet -n '__shardnet_at forward add' -f
complete -c shardnet -n '__shardnet_at forward remove' -f
complete -c shardnet -n __shardnet_just -f -a help -d 'Print the manual of a kind of section, or list the kinds'
complete -c shardnet -n '__shardnet_at help' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at help' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at help' -f -a '(__shardnet_ask kinds)'
complete -c shardnet -n __shardnet_just -f -a list -d 'List the labs that are running'
complete -c shardnet -n '__shardnet_at list' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at list' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at list' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a plug -d 'Make a port of standard input and output, which carry frames as VDE'\''s plugs do'
complete -c shardnet -n '__shardnet_at plug' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at plug' -l set -r -f -d 'a key of the port, KEY=VALUE as in a lab file'
complete -c shardnet -n '__shardnet_at plug' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at plug' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a port -d 'Show, add, remove or change the ports of a running lab'
complete -c shardnet -n '__shardnet_at port' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at port' -l netdev -r -f -d 'a port as QEMU'\''s -netdev says it'
complete -c shardnet -n '__shardnet_at port' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at port' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at port' -s q -l quiet -f -d 'print nothing of what was done'
complete -c shardnet -n '__shardnet_at port' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_just port' -f -a 'list show add remove up down set reset'
complete -c shardnet -n '__shardnet_at port show' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n '__shardnet_at port add' -f
complete -c shardnet -n '__shardnet_at port remove' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n '__shardnet_at port up' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n '__shardnet_at port down' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n '__shardnet_at port set' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n '__shardnet_at port set' -f
complete -c shardnet -n '__shardnet_at port reset' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a qemu -d 'Print the QEMU options that attach a guest to a port'
complete -c shardnet -n '__shardnet_at qemu' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at qemu' -s m -l model -r -f -d 'the guest'\''s network card [default: virtio-net-pci]'
complete -c shardnet -n '__shardnet_at qemu' -l memory -r -f -d 'the guest'\''s memory, where the port shares it (vhost-user); it takes the place of QEMU'\''s -m [default: 512M]'
complete -c shardnet -n '__shardnet_at qemu' -l qemu -r -f -d 'QEMU'\''s version, instead of asking qemu-system-x86_64'
complete -c shardnet -n '__shardnet_at qemu' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at qemu' -s h -l help -f -d 'print this'
complete -c shardnet -n '__shardnet_at qemu' -f -a '(__shardnet_ask ports)'
complete -c shardnet -n __shardnet_just -f -a reload -d 'Read a running lab'\''s file again and change what differs, nothing else'
complete -c shardnet -n '__shardnet_at reload' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at reload' -s n -l dry-run -f -d 'say what would be done, do nothing'
complete -c shardnet -n '__shardnet_at reload' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at reload' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at reload' -s q -l quiet -f -d 'print nothing'
complete -c shardnet -n '__shardnet_at reload' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a restart -d 'End a running lab and start it anew from its file, in the same process'
complete -c shardnet -n '__shardnet_at restart' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at restart' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at restart' -s q -l quiet -f -d 'print nothing'
complete -c shardnet -n '__shardnet_at restart' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a start -d 'Start a lab and carry its frames, in the foreground unless told otherwise'
complete -c shardnet -n '__shardnet_at start' -s c -l config -r -F -d 'the lab file'
complete -c shardnet -n '__shardnet_at start' -l netdev -r -f -d 'a port as QEMU'\''s -netdev says it, beside those of FILE'
complete -c shardnet -n '__shardnet_at start' -l name -r -f -d 'what the lab is called, instead of its file'\''s stem'
complete -c shardnet -n '__shardnet_at start' -s d -l detach -f -d 'go to the background once every port is open'
complete -c shardnet -n '__shardnet_at start' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a status -d 'Show a running lab: its ports, its workers'
complete -c shardnet -n '__shardnet_at status' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at status' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at status' -l no-headers -f -d 'rows only'
complete -c shardnet -n '__shardnet_at status' -s h -l help -f -d 'print this'
complete -c shardnet -n __shardnet_just -f -a stop -d 'End a running lab, in order: every port closed, nothing left behind'
complete -c shardnet -n '__shardnet_at stop' -s l -l lab -r -f -a '(__shardnet_ask labs)' -d 'the lab, where more than one is running'
complete -c shardnet -n '__shardnet_at stop' -s o -l output -r -f -a 'table json' -d 'table or json [default: table]'
complete -c shardnet -n '__shardnet_at stop' -s q -l quiet -f -d 'print nothing'
complete -c shardnet -n '__shardnet_at stop' -s h -l help -f -d 'print this'
