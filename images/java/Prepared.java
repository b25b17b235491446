import java.io.FileDescriptor;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;

/**
 * Java that waits for its program. It is an agent, which runs before the class that the command names is looked for; what is told and
 * when: src/image/prepare.rs. Its command takes no arguments, and no variables: what is told is read, and forgotten.
 */
public final class Prepared {
    private Prepared() {}

    public static void premain(String arguments) throws IOException {
        new FileOutputStream(FileDescriptor.out).write('\n');
        FileInputStream in = new FileInputStream(FileDescriptor.in);
        int length = 0;
        for (int digit = take(in); digit != '\n'; digit = take(in)) {
            length = 10 * length + digit - '0';
        }
        while (length-- > 0) {
            take(in);
        }
    }

    private static int take(FileInputStream in) throws IOException {
        int said = in.read();
        if (said < 0) {
            Runtime.getRuntime().halt(0);
        }
        return said;
    }
}
